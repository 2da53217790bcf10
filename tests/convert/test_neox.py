"""GPT-NeoX's settings become options by GPT-NeoX's rules."""

import pytest

from megatron_gptx.config.schema import Config
from megatron_gptx.convert.settings import read_neox
from megatron_gptx.convert.translate import nested, translate
from tests.convert.settings import fates, refused, translated

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
  "lr-decay-style": "cosine",
  "warmup": 0.02,
  "hidden-dropout": 0.1,
  "steps_per_print": 10,
  "tokenizer-type": "HFTokenizer", "vocab-file": "data/tokenizer.json",
  "extra-save-iters": [0, 1, 512],
}
"""
# The least that a file has to say.
MINIMAL = {
    "num_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "seq_length": 32,
    "data_path": "data/text",
    "train_iters": 1000,
    "train_micro_batch_size_per_gpu": 2,
}


def options(**settings):
    return translated("neox", {**MINIMAL, **settings}).options


def lines(texts):
    """Return `name: line` of each left out setting."""
    parts = [text.split(": ") for text in texts]
    return {name: int(where.rpartition(":")[2]) for where, name, *_ in parts}


def test_a_configuration_becomes_ours(tmp_path):
    (tmp_path / "neox.yml").write_text(NEOX)
    translation = translate(read_neox([tmp_path / "neox.yml"]), "neox", vocab_size=50277)
    config = Config.model_validate(nested(translation.options))
    assert config.data.train == {"data/a": 1.0, "data/b": 2.0}
    assert config.data.labels == {"data/a": "data/la", "data/b": "data/lb"}
    assert (config.data.valid, config.data.split) == ("data/v", None)
    assert config.data.packing == "until_overflow"
    assert config.data.tokenizer == "data/tokenizer.json"
    assert config.model.vocab_size == 50304  # the next multiple of 128
    assert (config.model.tied_head, config.model.position) == (False, "alibi")
    assert (config.model.dropout, config.model.attention.dropout) == (0.1, 0)
    assert config.model.residual == "pre_norm"
    assert (config.batch.micro_size, config.batch.accumulation_steps) == (4, 8)
    assert config.training.checkpoint_activations == 2
    assert (config.schedule.name, config.schedule.warmup_steps) == ("cosine", 20)
    assert config.schedule.decay_steps is None
    assert config.schedule.min_lr_ratio == pytest.approx(0.1)
    assert (config.precision, config.parallel.pipeline_stages) == ("fp16", 2)
    assert config.checkpoint.keep_steps == [1, 512]
    assert config.deepspeed == {
        "zero_optimization": {"overlap_comm": True},
        "fp16": {"loss_scale": 0},
        "steps_per_print": 10,
    }
    assert lines(translation.refused) == {"pos_emb": 8, "rotary_pct": 9}
    assert lines(translation.not_needed) == {
        "model_parallel_size": 4,
        "max_position_embeddings": 7,
        "attention_config": 11,
        "optimizer.type": 12,
        "test_data_paths": 19,
        "tokenizer_type": 29,
    }
    assert not translation.complete
    assert translation.counts.line == "parameters: 162,322,944, as there"


def test_its_defaults_are_written_out_where_ours_are_others():
    translation = translated("neox", MINIMAL)
    assert translation.complete
    assert {path: translation.options[path] for path in translation.options} == {
        "model.num_layers": 2,
        "model.hidden_size": 64,
        "model.num_heads": 4,
        "model.seq_length": 32,
        "model.residual": "pre_norm",
        "model.position": "learned",
        "model.activation": "gelu",
        "model.biases": True,
        "model.tied_head": True,
        "model.dropout": 0.0,
        "model.attention.dropout": 0.0,
        "data.train": "data/text",
        "data.split": "969,30,1",
        "training.steps": 1000,
        "training.micro_batch_size": 2,
        "optimizer.lr": 0.001,
        "optimizer.betas": [0.9, 0.999],
        "optimizer.weight_decay": 0.1,
        "optimizer.decay_embeddings": True,
        "schedule.name": "linear",
        "schedule.warmup_steps": 10,
        "schedule.min_lr_ratio": 0.0,
        "parallel.zero_stage": 0,
        "checkpoint.interval": 1000,
        "checkpoint.keep_last": None,
        "evaluation.interval": 1000,
        "evaluation.batches": 100,
        "generation.max_new_tokens": 64,
        "generation.temperature": 0.0,
    }


@pytest.mark.parametrize(
    ("settings", "width"),
    [
        ({"activation": "swiglu", "intermediate_size": 32768, "mlp_multiple_of": 256}, 11008),
        ({"activation": "swiglu", "intermediate_size": 86016, "mlp_multiple_of": 256}, 28672),
        ({"activation": "swiglu", "mlp_multiple_of": 256}, 5632),
        ({"activation": "swiglu"}, None),  # 10922 outputs, 5461 inputs: both halves fit
        ({"mlp_type": "llama", "activation": "silu"}, 11008),
        ({"mlp_type": "llama", "activation": "silu", "intermediate_size": 14336}, 14336),
        ({"intermediate_size": 11008}, 11008),
        ({"expansion_factor": 8}, 32768),
        ({"mlp_multiple_of": 256}, None),
        ({}, None),
    ],
)
def test_a_feedforward_is_as_wide_as_there(settings, width):
    found = options(hidden_size=4096, **settings)
    expected = 5461 if settings == {"activation": "swiglu"} else width
    assert found.get("model.ffn_hidden_size") == expected
    translation = translated("neox", {**MINIMAL, "hidden_size": 4096, **settings})
    biased = "mlp_type" in settings
    assert translation.counts.equal != biased


@pytest.mark.parametrize(
    ("settings", "lost"),
    [
        # 2/3 of 8192 is 5461, which halves to 2730.
        ({"hidden_size": 2048, "activation": "swiglu"}, {"activation"}),
        ({"hidden_size": 64, "mlp_multiple_of": 256}, {"mlp_multiple_of"}),
        ({"hidden_size": 128, "mlp_multiple_of": 256}, set()),
    ],
)
def test_a_width_whose_projections_do_not_fit_is_refused(settings, lost):
    translation = translated("neox", {**MINIMAL, **settings})
    assert refused(translation) == lost
    for line in translation.refused:
        assert "that do not fit each other" in line


@pytest.mark.parametrize(
    ("settings", "precision"),
    [
        ({}, None),
        ({"fp16.enabled": True}, "fp16"),
        ({"fp16.enabled": False}, None),
        ({"fp16.enabled": True, "fp16.type": "bfloat16"}, "bf16"),
        ({"fp16.type": "bfloat16", "fp16.enabled": True, "bf16.enabled": True}, "bf16"),
        ({"fp16.enabled": False, "bf16.enabled": True}, "bf16"),
        ({"precision": "bfloat16", "bf16.enabled": True}, "bf16"),
        ({"precision": "bfloat16"}, "bf16"),
        ({"precision": "fp32", "fp16.enabled": False}, "fp32"),
    ],
)
def test_the_arithmetic_may_be_named_in_four_places(settings, precision):
    translation = translated("neox", {**MINIMAL, **settings})
    assert translation.options.get("precision") == precision
    assert refused(translation) == set()


def test_two_arithmetics_contradict_each_other():
    translation = translated("neox", {**MINIMAL, "precision": "bfloat16", "fp16.enabled": True})
    assert refused(translation) == {"fp16.enabled"}
    assert "contradicts precision ('bfloat16') at theirs:8" in translation.refused[0]


def test_the_loss_scale_is_handed_on_with_fp16_only():
    scale = {"fp16.loss_scale": 0, "fp16.hysteresis": 2, "fp16.fp16": True}
    on = translated("neox", {**MINIMAL, "fp16.enabled": True, **scale})
    assert on.options["deepspeed.fp16.hysteresis"] == 2
    assert fates(on)["fp16.fp16"] == "not needed"
    off = translated("neox", {**MINIMAL, "precision": "bfloat16", **scale})
    assert not any(path.startswith("deepspeed") for path in off.options)
    assert refused(off) == set()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"train_iters": 1000, "warmup": 0.02}, (20, None)),
        ({"train_iters": 1000, "lr_decay_iters": 500}, (5, 495)),
        ({"train_iters": 1000, "lr_decay_iters": 1000}, (10, None)),
        ({"train_iters": 1000, "lr_decay_fraction": 0.5}, (5, 495)),
        ({"train_iters": 5, "lr_decay_iters": 320000, "warmup": 0.0}, (0, 320000)),
        ({"train_iters": 1000, "warmup": 0}, (0, None)),
        ({"train_iters": 40, "warmup": 0.01}, (1, None)),
    ],
)
def test_warmup_is_a_share_of_the_steps_to_the_end_of_the_decay(settings, expected):
    found = options(**settings)
    assert (found["schedule.warmup_steps"], found.get("schedule.decay_steps")) == expected


def test_a_linear_decay_aims_at_zero_and_stops_at_the_lowest_rate():
    from megatron_gptx.config.training import ScheduleConfig
    from megatron_gptx.training.schedule import learning_rate

    found = options(lr=1.0, min_lr=0.25, warmup=0)
    schedule = ScheduleConfig.model_validate(nested(found)["schedule"])
    rates = [learning_rate(n, peak=1.0, steps=1000, schedule=schedule) for n in (0, 500, 750, 999)]
    assert rates == pytest.approx([1.0, 0.5, 0.25, 0.25])


@pytest.mark.parametrize(
    ("settings", "lost"),
    [
        ({"train_epochs": 2}, {"train_epochs"}),
        ({"train_epochs": 2, "warmup": 0}, set()),
        ({"train_epochs": 2, "warmup": 0.1}, {"warmup"}),
        ({"train_epochs": 2, "lr_decay_fraction": 0.5, "warmup": 0}, {"lr_decay_fraction"}),
        ({"train_epochs": 2, "lr_decay_iters": 100}, set()),
        ({"min_lr": 0.1}, set()),
    ],
)
def test_a_share_of_an_unknown_number_of_steps_is_named(settings, lost):
    given = {name: value for name, value in MINIMAL.items() if name != "train_iters"}
    assert refused(translated("neox", {**given, **settings})) == lost


@pytest.mark.parametrize(
    ("settings", "lost"),
    [
        ({"pos_emb": "rotary", "rotary_pct": 0.25}, {"pos_emb", "rotary_pct"}),
        ({"pos_emb": "alibi", "rotary_pct": 0.25}, set()),
        ({"norm": "rmsnorm", "rms_norm_epsilon": 1e-6}, {"norm", "rms_norm_epsilon"}),
        ({"norm": "layernorm", "rms_norm_epsilon": 1e-6}, set()),
        ({"layernorm_epsilon": 1e-6}, {"layernorm_epsilon"}),
        ({"gpt_j_residual": True}, {"gpt_j_residual"}),
        ({"gpt_j_residual": False}, set()),
        ({"activation": "geglu"}, {"activation"}),
        ({"activation": "silu"}, {"activation"}),
        ({"mlp_type": "llama", "activation": "gelu"}, {"mlp_type"}),
        ({"mlp_type": "llama", "activation": "silu"}, {"mlp_type"}),
        (
            {"mlp_type": "llama", "activation": "silu", "use_bias_in_attn_linear": False},
            set(),
        ),
        ({"num_kv_heads": 2}, {"num_kv_heads"}),
        ({"num_kv_heads": 4}, set()),
        ({"use_bias_in_norms": False}, {"use_bias_in_norms"}),
        ({"use_bias_in_attn_linear": False}, {"use_bias_in_attn_linear"}),
        ({"use_bias_in_attn_linear": False, "use_bias_in_mlp": False}, set()),
        ({"use_qk_layernorm": True}, {"use_qk_layernorm"}),
        ({"sliding_window_width": 4096}, {"sliding_window_width"}),
        ({"attention_config": [[["global"], "all"]]}, set()),
        ({"attention_config": [[["flash"], 2]]}, set()),
        ({"attention_config": [[["local", "global"], 1]]}, {"attention_config"}),
        ({"attention_config": [[["mamba"], 2]], "mamba_x": 1}, {"attention_config", "mamba_x"}),
        ({"mamba_x": 1}, set()),
        ({"moe_num_experts": 8, "moe_top_k": 2}, {"moe_num_experts", "moe_top_k"}),
        ({"moe_num_experts": 1, "moe_top_k": 2}, set()),
        ({"max_position_embeddings": 64}, {"max_position_embeddings"}),
        ({"max_position_embeddings": 64, "pos_emb": "none"}, set()),
        ({"reset_position_ids": True}, {"reset_position_ids"}),
        ({"reset_position_ids": True, "pos_emb": "alibi"}, set()),
        ({"reset_position_ids": True, "reset_attention_mask": True}, set()),
        ({"reset_attention_mask": True}, {"reset_attention_mask"}),
        ({"reset_attention_mask": True, "pos_emb": "alibi"}, set()),
        ({"reset_position_ids": False, "reset_attention_mask": True}, {"reset_position_ids"}),
        ({"optimizer.type": "sgd"}, {"optimizer.type"}),
        ({"lr_decay_style": "exponential"}, {"lr_decay_style"}),
        ({"init_method": "small_init"}, {"init_method"}),
        ({"checkpoint_scale": "log"}, {"checkpoint_scale"}),
        ({"finetune": True, "load": "a", "save": "b"}, {"finetune", "load"}),
        ({"load": "a", "save": "a"}, set()),
        ({"curriculum_learning.enabled": True}, {"curriculum_learning.enabled"}),
        ({"curriculum_learning.enabled": False, "curriculum_learning.x": 1}, set()),
        ({"progressive_layer_drop.theta": 0.5}, {"progressive_layer_drop.theta"}),
        ({"train_impl": "dpo", "dpo_beta": 0.1}, {"train_impl", "dpo_beta"}),
        ({"eps_of_something": 1}, {"eps_of_something"}),
        ({"hidden_size": "64"}, {"hidden_size"}),
        ({"extra_save_iters": "often"}, {"extra_save_iters"}),
        ({"num_layers": [1, 2]}, {"num_layers"}),
        ({"optimizer.params.lr": 1e-3, "lr": 1e-4}, {"lr"}),
        (
            {"optimizer.params.max_grad_norm": 2.0, "gradient_clipping": 1.0},
            {"optimizer.params.max_grad_norm"},
        ),
        ({"seed": None, "sliding_window_width": None}, set()),
    ],
)
def test_what_makes_another_model_is_refused_and_nothing_else(settings, lost):
    assert refused(translated("neox", {**MINIMAL, **settings})) == lost


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"gradient_clipping": 0}, {"optimizer.gradient_clipping": None}),
        ({"gradient_clipping": 0.5}, {"optimizer.gradient_clipping": 0.5}),
        ({"top_k": 0, "top_p": 0.0}, {"generation.top_k": None, "generation.top_p": None}),
        ({"pipe_parallel_size": 0}, {"parallel.pipeline_stages": 1}),
        ({"zero_optimization.cpu_offload": True}, {"parallel.offload": "optimizer"}),
        ({"use_wandb": True}, {"logging.wandb": True, "logging.wandb_project": "neox"}),
        ({"tensorboard_dir": "x"}, {"logging.tensorboard": True}),
        ({"keep_last_n_checkpoints": 4}, {"checkpoint.keep_last": 4}),
        ({"save_interval": 7}, {"checkpoint.interval": 7}),
        ({"zero_reduce_bucket_size": 5}, {"deepspeed.zero_optimization.reduce_bucket_size": 5}),
        (
            {"deepspeed_extra_args.comms_logger.enabled": True},
            {"deepspeed.comms_logger.enabled": True},
        ),
        ({"checkpoint_activations": False}, {"training.checkpoint_activations": 0}),
    ],
)
def test_values_are_those_of_our_options(settings, expected):
    found = options(**settings)
    assert {path: found[path] for path in expected} == expected


@pytest.mark.parametrize(
    ("name", "fate"),
    [
        ("train_data_weights", "not needed"),
        ("train_label_data_paths", "not needed"),
        ("valid_data_weights", "not needed"),
        ("split", "translated"),
    ],
)
def test_a_setting_without_what_it_belongs_to_does_not_vanish(name, fate):
    assert fates(translated("neox", {name: "90,5,5"})) == {name: fate}


@pytest.mark.parametrize(
    ("settings", "size", "expected"),
    [
        ({}, 50277, 50304),
        ({"model_parallel_size": 4}, 50277, 50688),
        ({"make_vocab_size_divisible_by": 1}, 50277, 50277),
        ({"padded_vocab_size": 51200}, 50277, 51200),
        ({}, None, None),
        ({"make_vocab_size_divisible_by": 1}, None, None),
    ],
)
def test_the_vocabulary_is_rounded_up_for_all_ranks(settings, size, expected):
    translation = translated("neox", {**MINIMAL, **settings}, size=size)
    assert translation.options.get("model.vocab_size") == expected
    assert len(fates(translation)) == len({**MINIMAL, **settings})


def test_without_a_vocabulary_the_rest_of_the_model_is_compared():
    assert translated("neox", MINIMAL).counts.line == (
        "parameters: 102,144 beside the tables of tokens, as there"
    )
