"""Megatron-LM's arguments become options by Megatron-LM's rules."""

import pytest

from megatron_gptx.config.schema import Config
from megatron_gptx.convert.shell import read_megatron
from megatron_gptx.convert.translate import nested, translate
from tests.convert.settings import fates, refused, translated

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
MINIMAL = {
    "num_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "seq_length": 32,
    "max_position_embeddings": 32,
    "data_path": "data/text",
    "train_iters": 1000,
    "micro_batch_size": 2,
    "lr": 0.001,
}


def lines(texts):
    """Return `name: line` of each left out setting."""
    parts = [text.split(": ") for text in texts]
    return {name: int(where.rpartition(":")[2]) for where, name, *_ in parts}


def test_a_script_becomes_ours(tmp_path):
    (tmp_path / "gpt.sh").write_text(MEGATRON)
    translation = translate(read_megatron([tmp_path / "gpt.sh"]), "megatron")
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
    # Without a number of groups there is one.
    assert lines(translation.refused) == {"group_query_attention": 23}
    assert lines(translation.not_needed) == {
        "nproc_per_node": 17,
        "load": 21,
        "tensor_model_parallel_size": 22,
        "wandb_exp_name": 22,
    }
    assert not translation.counts.equal


def test_its_defaults_are_written_out_where_ours_are_others():
    translation = translated("megatron", MINIMAL)
    assert translation.complete
    assert translation.options == {
        "model.num_layers": 2,
        "model.hidden_size": 64,
        "model.num_heads": 4,
        "model.seq_length": 32,
        "model.residual": "pre_norm",
        "model.position": "learned",
        "model.activation": "gelu",
        "model.biases": True,
        "model.tied_head": True,
        "model.dropout": 0.1,
        "model.attention.dropout": 0.1,
        "data.train": "data/text",
        "data.split": "969,30,1",
        "training.steps": 1000,
        "training.micro_batch_size": 2,
        "optimizer.lr": 0.001,
        "optimizer.betas": [0.9, 0.999],
        "optimizer.weight_decay": 0.01,
        "optimizer.decay_embeddings": True,
        "schedule.name": "linear",
        "schedule.warmup_steps": 0,
        "schedule.min_lr_ratio": 0.0,
        "parallel.zero_stage": 0,
        "checkpoint.interval": 1000,
        "checkpoint.keep_last": None,
        "evaluation.interval": 1000,
        "evaluation.batches": 100,
    }


def test_the_same_names_mean_other_things_to_other_tools():
    shared = {"hidden_size": 1024, "num_layers": 2, "num_attention_heads": 4, "seq_length": 32}
    gated = {"neox": {"activation": "swiglu"}, "megatron": {"swiglu": True}}
    widths = {
        tool: translated(tool, {**shared, **gated[tool]}).options["model.ffn_hidden_size"]
        for tool in ("neox", "megatron")
    }
    assert widths == {"neox": 1365, "megatron": 2688}
    dropouts = {
        tool: translated(tool, shared).options["model.dropout"] for tool in ("neox", "megatron")
    }
    assert dropouts == {"neox": 0.0, "megatron": 0.1}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"train_iters": None, "train_samples": 6400, "lr_warmup_samples": 640}, (100, 10, None)),
        (
            {"train_iters": None, "train_samples": 6463, "lr_decay_samples": 3200},
            (100, 0, 50),
        ),
        ({"lr_warmup_fraction": 0.1, "lr_decay_iters": 500}, (1000, 50, 450)),
        ({"lr_warmup_fraction": 0.1}, (1000, 100, None)),
        ({"lr_warmup_iters": 7, "lr_decay_iters": 1000}, (1000, 7, None)),
        ({"lr_warmup_samples": 16}, (1000, 1, None)),
    ],
)
def test_lengths_are_counted_in_steps_or_in_samples(settings, expected):
    given = {**MINIMAL, "global_batch_size": 64, **settings}
    given = {name: value for name, value in given.items() if value is not None}
    translation = translated("megatron", given)
    found = translation.options
    assert refused(translation) == set()
    assert (
        found["training.steps"],
        found["schedule.warmup_steps"],
        found.get("schedule.decay_steps"),
    ) == expected


@pytest.mark.parametrize("name", ["train_samples", "lr_warmup_samples", "lr_decay_samples"])
def test_samples_without_a_batch_size_are_named(name):
    given = {key: value for key, value in MINIMAL.items() if key != "train_iters"}
    assert refused(translated("megatron", {**given, name: 640})) == {name}


@pytest.mark.parametrize(
    ("settings", "lost"),
    [
        ({"lr_wsd_decay_style": "linear", "lr_wsd_decay_iters": 100}, set()),
        ({"lr_wsd_decay_iters": 100}, {"lr_decay_style"}),
        ({"lr_wsd_decay_style": "cosine"}, {"lr_decay_style", "lr_wsd_decay_style"}),
        ({"lr_wsd_decay_style": "linear", "lr_decay_iters": 500}, {"lr_decay_iters"}),
        ({"lr_wsd_decay_style": "linear", "lr_decay_iters": 1000}, set()),
    ],
)
def test_a_stable_rate_falls_linearly_at_the_end_of_the_run(settings, lost):
    translation = translated("megatron", {**MINIMAL, "lr_decay_style": "WSD", **settings})
    assert refused(translation) == lost
    assert translation.options["schedule.name"] == "wsd"
    assert translation.options.get("schedule.decay_steps") == settings.get("lr_wsd_decay_iters")


@pytest.mark.parametrize(
    ("settings", "lost"),
    [
        (
            {"group_query_attention": True, "num_query_groups": 2},
            {"group_query_attention", "num_query_groups"},
        ),
        ({"group_query_attention": True, "num_query_groups": 4}, set()),
        ({"num_query_groups": 2}, set()),
        ({"kv_channels": 16}, set()),
        ({"kv_channels": 32}, {"kv_channels"}),
        ({"normalization": "RMSNorm"}, {"normalization"}),
        ({"normalization": "LayerNorm", "apply_layernorm_1p": True}, set()),
        ({"norm_epsilon": 1e-5}, set()),
        ({"norm_epsilon": 1e-6}, {"norm_epsilon"}),
        (
            {"position_embedding_type": "rope", "rotary_base": 1},
            {"position_embedding_type", "rotary_base"},
        ),
        (
            {"use_rotary_position_embeddings": True, "no_position_embedding": True},
            {"use_rotary_position_embeddings"},
        ),
        ({"no_position_embedding": True}, set()),
        ({"max_position_embeddings": 64}, {"max_position_embeddings"}),
        ({"max_position_embeddings": 64, "position_embedding_type": "none"}, set()),
        ({"reset_position_ids": True}, {"reset_position_ids"}),
        ({"reset_position_ids": True, "reset_attention_mask": True}, set()),
        ({"squared_relu": True}, {"squared_relu"}),
        ({"disable_bias_linear": True}, set()),
        ({"disable_bias_linear": True, "add_qkv_bias": True}, {"add_qkv_bias"}),
        ({"num_experts": 8, "moe_router_topk": 2}, {"num_experts", "moe_router_topk"}),
        ({"moe_router_topk": 2, "expert_model_parallel_size": 2}, set()),
        ({"rampup_batch_size": [16, 16, 5859375]}, {"rampup_batch_size"}),
        ({"decoupled_lr": 1.0, "decoupled_min_lr": 0.1}, {"decoupled_lr", "decoupled_min_lr"}),
        (
            {"fp8_format": "hybrid", "fp8_amax_history_len": 1024},
            {"fp8_format", "fp8_amax_history_len"},
        ),
        ({"lr_decay_style": "inverse-square-root"}, {"lr_decay_style"}),
        ({"optimizer": "sgd"}, {"optimizer"}),
        ({"optimizer": "adam"}, set()),
        ({"script": "pretrain_bert.py"}, {"script"}),
        ({"spec": ["a", "b"], "hybrid_mlp_ratio": 0.5}, {"spec", "hybrid_mlp_ratio"}),
        ({"mock_data": True}, {"mock_data"}),
        ({"save": "$1", "load": "$1"}, {"save"}),
        ({"save": "a", "load": "b"}, {"load"}),
        ({"tensorboard_dir": "$2", "vocab_file": "$3", "wandb_exp_name": "$NAME"}, set()),
        ({"save": ["<PATH", "TO>"]}, {"save"}),
        ({"num_layers": "${48|56}"}, {"num_layers"}),
        ({"hidden_size": True}, {"hidden_size"}),
        ({"bf16": "maybe"}, {"bf16"}),
        ({"fp16": True, "bf16": True}, {"bf16"}),
        ({"no_such_argument": 1}, {"no_such_argument"}),
    ],
)
def test_what_makes_another_model_is_refused_and_nothing_else(settings, lost):
    assert refused(translated("megatron", {**MINIMAL, **settings})) == lost


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"swiglu": True}, {"model.activation": "swiglu", "model.ffn_hidden_size": 128}),
        ({"swiglu": True, "ffn_hidden_size": 96}, {"model.ffn_hidden_size": 96}),
        ({"untie_embeddings_and_output_weights": True}, {"model.tied_head": False}),
        ({"no_position_embedding": True}, {"model.position": "none"}),
        ({"clip_grad": 0}, {"optimizer.gradient_clipping": None}),
        ({"adam_beta1": 0.8}, {"optimizer.betas": [0.8, 0.999]}),
        ({"use_distributed_optimizer": True}, {"parallel.zero_stage": 1}),
        (
            {"recompute_granularity": "full", "recompute_num_layers": 2},
            {"training.checkpoint_activations": 2},
        ),
        ({"checkpoint_activations": True}, {"training.checkpoint_activations": 1}),
        ({"activations_checkpoint_method": "uniform"}, {"training.checkpoint_activations": 1}),
        ({"wandb_project": "x"}, {"logging.wandb": True, "logging.wandb_project": "x"}),
        ({"save_retain_interval": 50}, {"checkpoint.keep_every": 50, "checkpoint.keep_last": 1}),
        ({"async_save": True}, {"checkpoint.asynchronous": True}),
        ({"exit_duration_in_mins": 235}, {"training.time_limit_minutes": 235}),
        ({"loss_scale": 1024}, {"deepspeed.fp16.loss_scale": 1024}),
        (
            {"vocab_file": "t/vocab.json", "merge_file": "t/merges.txt"},
            {"data.tokenizer": "t/vocab.json,t/merges.txt"},
        ),
        ({"tokenizer_model": "t.model"}, {"data.tokenizer": "t.model"}),
        ({"vocab_size": 127, "tokenizer_type": "NullTokenizer"}, {"model.vocab_size": 128}),
        ({"vocab_size": 128, "tokenizer_type": "NullTokenizer"}, {"model.vocab_size": 256}),
        ({"vocab_size": 128}, {"model.vocab_size": 128}),
        ({"split": ["969,", "30,", 1]}, {"data.split": "969,30,1"}),
        ({"position_embedding_type": "rope"}, {"model.position": "alibi"}),
    ],
)
def test_values_are_those_of_our_options(settings, expected):
    translation = translated("megatron", {**MINIMAL, **settings})
    assert {path: translation.options[path] for path in expected} == expected
    assert len(fates(translation)) == len({**MINIMAL, **settings})


@pytest.mark.parametrize(
    ("name", "fate"),
    [
        ("fim_rate", "not needed"),
        ("fim_prefix_token", "not needed"),
        ("lr_wsd_decay_iters", "not needed"),
        ("make_vocab_size_divisible_by", "not needed"),
        ("vocab_size", "translated"),
        ("min_lr", "refused"),
        ("lr_warmup_fraction", "refused"),
        ("split", "translated"),
    ],
)
def test_a_setting_without_what_it_belongs_to_does_not_vanish(name, fate):
    assert fates(translated("megatron", {name: 5})) == {name: fate}


@pytest.mark.parametrize(
    ("settings", "theirs"),
    [
        # Llama 3's 8 billion: GPT's embedding, grouped queries, gates, no biases; RMSNorm.
        (
            {
                "num_layers": 32,
                "hidden_size": 4096,
                "ffn_hidden_size": 14336,
                "num_attention_heads": 32,
                "group_query_attention": True,
                "num_query_groups": 8,
                "seq_length": 8192,
                "swiglu": True,
                "position_embedding_type": "rope",
                "normalization": "RMSNorm",
                "untie_embeddings_and_output_weights": True,
                "disable_bias_linear": True,
                "vocab_size": 128256,
            },
            8_030_261_248,
        ),
        # GPT-2's 355 million with 1,024 positions and 50,257 tokens.
        (
            {
                "num_layers": 24,
                "hidden_size": 1024,
                "num_attention_heads": 16,
                "seq_length": 1024,
                "vocab_size": 50257,
                "make_vocab_size_divisible_by": 1,
            },
            354_823_168,
        ),
    ],
)
def test_their_size_is_that_of_the_published_model(settings, theirs):
    assert translated("megatron", settings).counts.theirs == theirs


def test_a_model_of_another_kind_is_not_compared():
    counts = translated("megatron", {**MINIMAL, "num_experts": 8}).counts
    assert counts.line == "parameters: not compared: models with num_experts are not known here"
