"""Settings of GPT-NeoX and Megatron-LM become options, and none is lost in silence."""

from pathlib import Path

import pytest

from megatron_gptx.config.errors import ConfigError
from megatron_gptx.config.foreign import Setting, read_megatron, read_neox
from megatron_gptx.config.foreign_names import NOT_NEEDED, NUMBERS, ONLY, SAME, WORDS
from megatron_gptx.config.schema import Config
from megatron_gptx.config.translate import nested, translate
from megatron_gptx.config.yaml_reader import Place

NEOX = """\
{
  # comments and a trailing comma, as their files have them
  "pipe-parallel-size": 2,
  "model-parallel-size": 1,
  "num-layers": 12, "hidden-size": 768,
  "num-attention-heads": 12,
  "seq-length": 2048, "max-position-embeddings": 2048,
  "pos-emb": "rotary",
  "rotary-pct": 0.25,
  "no-weight-tying": true,
  "attention-config": [[["global"], 12]],
  "optimizer": {"type": "Adam", "params": {"lr": 0.0006, "betas": [0.9, 0.95], "eps": 1.0e-8}},
  "min_lr": 0.00006,
  "zero_optimization": {"stage": 1, "overlap_comm": True},
  "train-data-paths": ["data/a", "data/b"],
  "train-data-weights": [1.0, 2.0],
  "train-label-data-paths": ["data/la", "data/lb"],
  "valid-data-paths": ["data/v"],
  "test-data-paths": ["data/t"],
  "pack-impl": "pack_until_overflow",
  "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 8,
  "checkpoint-activations": true, "checkpoint-num-layers": 2,
  "fp16": {"enabled": true, "loss_scale": 0},
  "train-iters": 1000, "lr-decay-iters": 1000,
  "warmup": 0.02,
  "hidden-dropout": 0,
  "steps_per_print": 10,
  "tokenizer-type": "HFTokenizer", "vocab-file": "data/tokenizer.json",
}
"""

MEGATRON = """\
#!/bin/bash
# --num-layers 99 in a comment is nothing
CHECKPOINTS=runs/gpt
DATA="0.3 data/a 0.7 data/b"
MODEL_ARGS=(
    --num-layers 24
    --hidden-size 1024 --num-attention-heads 16
    --position-embedding-type alibi
)
TRAINING_ARGS="
    --seq-length 1024 \\
    --micro-batch-size 4 --global-batch-size=64 \\
    --train-samples 6400 --lr 1e-3 --lr-decay-style cosine \\
    --lr-warmup-iters 10 --bf16 --adam-beta2 0.95 \\
    --untie-embeddings-and-output-weights
"
torchrun --nproc_per_node 8 pretrain_gpt.py "${MODEL_ARGS[@]}" $TRAINING_ARGS \\
    --data-path $DATA \\
    --split 90,5,5 --eod-mask-loss --reset-attention-mask --fim-data --fim-rate 0.4 \\
    --fim-prefix-token '<PRE>' \\
    --save $CHECKPOINTS --load "$CHECKPOINTS" \\
    --tensor-model-parallel-size 2 --wandb-exp-name $NAME \\
    --vocab-size 50257 --group-query-attention
"""


@pytest.fixture
def neox(tmp_path):
    path = tmp_path / "neox.yml"
    path.write_text(NEOX)
    return read_neox([path])


@pytest.fixture
def megatron(tmp_path):
    path = tmp_path / "gpt.sh"
    path.write_text(MEGATRON)
    return read_megatron([path])


def lines(texts):
    """Return `name: line` of each left out setting."""
    parts = [text.split(": ") for text in texts]
    return {name: int(where.rpartition(":")[2]) for where, name, *_ in parts}


def test_a_neox_configuration_becomes_ours(neox):
    translation = translate(neox, vocab_size=50277)
    config = Config.model_validate(nested(translation.options))
    assert config.data.train == {"data/a": 1.0, "data/b": 2.0}
    assert config.data.labels == {"data/a": "data/la", "data/b": "data/lb"}
    assert (config.data.valid, config.data.split) == ("data/v", None)
    assert config.data.packing == "until_overflow"
    assert config.data.tokenizer == "data/tokenizer.json"
    assert config.model.vocab_size == 50304  # the next multiple of 128
    assert (config.model.tied_head, config.model.position) == (False, "learned")
    assert (config.model.dropout, config.model.attention.dropout) == (0, 0.1)
    assert config.model.residual == "pre_norm"
    assert (config.batch.micro_size, config.batch.accumulation_steps) == (4, 8)
    assert config.training.checkpoint_activations == 2
    assert (config.schedule.name, config.schedule.warmup_steps) == ("linear", 20)
    assert config.schedule.min_lr_ratio == pytest.approx(0.1)
    assert (config.precision, config.parallel.pipeline_stages) == ("fp16", 2)
    assert config.deepspeed == {
        "zero_optimization": {"overlap_comm": True},
        "fp16": {"loss_scale": 0},
        "steps_per_print": 10,
    }
    assert lines(translation.unknown) == {"pos_emb": 8, "rotary_pct": 9, "test_data_paths": 19}
    assert lines(translation.not_needed) == {
        "model_parallel_size": 4,
        "max_position_embeddings": 7,
        "attention_config": 11,
        "optimizer.type": 12,
        "tokenizer_type": 28,
    }


def test_a_megatron_script_becomes_ours(megatron):
    translation = translate(megatron)
    config = Config.model_validate(nested(translation.options))
    assert config.data.train == {"data/a": 0.3, "data/b": 0.7}
    assert config.data.split == "90,5,5"
    assert config.data.mask_document_ends
    assert config.data.isolate_documents
    infill = config.data.fill_in_the_middle
    assert (infill.rate, infill.spm_rate, infill.prefix) == (0.4, 0.5, "<PRE>")
    assert (config.model.num_layers, config.model.position) == (24, "alibi")
    assert config.model.vocab_size == 50432  # a multiple of 128 for each of two ranks
    assert not config.model.tied_head
    assert (config.training.steps, config.training.global_batch_size) == (100, 64)
    assert config.optimizer.betas == [0.9, 0.95]
    assert (config.schedule.warmup_steps, config.precision) == (10, "bf16")
    assert config.output.run_dir == "runs/gpt"
    assert lines(translation.unknown) == {
        "tensor_model_parallel_size": 22,
        "wandb_exp_name": 22,
        "group_query_attention": 23,
    }
    assert "$NAME': a variable that the file does not set" in "\n".join(translation.unknown)
    assert lines(translation.not_needed) == {"nproc_per_node": 17, "load": 21}


@pytest.mark.parametrize("name", sorted({*SAME, *WORDS, *NOT_NEEDED, *NUMBERS, *ONLY, "no"}))
def test_every_setting_is_translated_or_named(name):
    empty = translate({})
    setting = Setting(name, "something else", Place("theirs.yml", 7))
    translation = translate({name: setting})
    named = [*translation.unknown, *translation.not_needed]
    assert (translation.options != empty.options) != bool(named)
    for line in named:
        assert line.startswith(f"theirs.yml:7: {name}: ")


def test_later_files_override_earlier_ones(tmp_path):
    for name, text in (("a.yml", "num-layers: 2\nlr: 1"), ("b.yml", "num_layers: 3")):
        (tmp_path / name).write_text(text)
    settings = read_neox([tmp_path / "a.yml", tmp_path / "b.yml"])
    assert (settings["num_layers"].value, settings["lr"].value) == (3, 1)
    assert settings["num_layers"].place.source.endswith("b.yml")


def test_their_words_for_truth_are_understood(tmp_path):
    (tmp_path / "a.yml").write_text("eod_mask_loss: yes\nreset-attention-mask: off\n")
    options = translate(read_neox([tmp_path / "a.yml"])).options
    assert options["data.mask_document_ends"] is True
    assert options["data.isolate_documents"] is False


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a", "a"),
        (["a", "b"], {"a": 1.0, "b": 1.0}),
        ([3, "a", 1, "b"], {"a": 3, "b": 1}),
    ],
)
def test_a_data_path_is_a_prefix_prefixes_or_weights_and_prefixes(path, expected):
    options = translate({"data_path": Setting("data_path", path, Place("x", 1))}).options
    assert options["data.train"] == expected
    assert options["data.split"] == "969,30,1"


@pytest.mark.parametrize("read", [read_neox, read_megatron])
def test_a_file_that_is_not_there_is_named(read):
    with pytest.raises(ConfigError, match=r"absent"):
        read([Path("absent.yml")])


def test_a_data_path_beside_training_data_is_named(tmp_path):
    (tmp_path / "n.yml").write_text("data-path: a\ntrain-data-paths: [b]\n")
    translation = translate(read_neox([tmp_path / "n.yml"]))
    assert translation.options["data.train"] == "b"
    assert lines(translation.unknown) == {"data_path": 1}
