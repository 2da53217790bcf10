"""Planned peaks on a CPU against those of real ranks."""

import pytest

from megatron_gptx.config.schema import Config
from megatron_gptx.costs.plan import make_plan
from tests.pairs import extended
from tests.peaks import measure_peaks

# Activations outweigh all else: DeepSpeed's buckets, and what ZeRO-3 keeps whole.
SMALL = {
    "num_layers": 5,
    "hidden_size": 64,
    "num_heads": 4,
    "vocab_size": 512,
    "seq_length": 256,
}
SMALL_BUCKETS = {"reduce_bucket_size": 10_000, "allgather_bucket_size": 10_000}
TOP_K, SCORES = {"top_k": 8}, {"residual_scores": True}
BOTH = {**TOP_K, **SCORES}


def layout(backend="fused", stages=1, zero=0, replicas=1, group=0, precision="fp32", **model):
    """Return the sections of a configuration with some options replaced."""
    return {
        "model": {**SMALL, **model},
        "training": {
            "steps": 3,
            "micro_batch_size": 2,
            "accumulation_steps": 4,
            "checkpoint_activations": group,
        },
        "parallel": {"pipeline_stages": stages, "zero_stage": zero, "data_replicas": replicas},
        "precision": precision,
        # Without top_k, `fused` would be refused: attention is PyTorch's then.
        "ops": {"backend": backend},
    }


OFTEN = {
    "three stages, fused": layout(stages=3, attention=BOTH),
    "two stages, Macaron, reference": layout("reference", stages=2, attention=BOTH, macaron=True),
    "recomputed": layout(group=2, attention=BOTH),
    "ZeRO-2": layout(zero=2, replicas=2, attention=TOP_K),
}
SELDOM = {
    "one stage, fused": layout(attention=BOTH, macaron=True),
    "two stages, fused": layout(stages=2, attention=BOTH, macaron=True),
    "three stages, reference": layout("reference", stages=3, attention=BOTH),
    "recomputed in stages": layout(stages=2, group=2, attention=BOTH),
    "recomputed, reference": layout("reference", group=1, attention=BOTH),
    "dense": layout("auto"),
    "dense, reference": layout("reference"),
    "dense with scores": layout("auto", stages=2, attention=SCORES),
    "top-k, reference": layout("reference", attention=TOP_K),
    "ZeRO-1": layout(zero=1, replicas=2, attention=TOP_K),
    "ZeRO-1, reference": layout("reference", zero=1, replicas=2, attention=TOP_K),
    "ZeRO-3": layout(zero=3, replicas=2, attention=TOP_K, seq_length=512),
    "bf16": layout(stages=2, attention=BOTH, precision="bf16"),
    "bf16, reference": layout("reference", stages=2, attention=BOTH, precision="bf16"),
    "SwiGLU": layout("auto", activation="swiglu", residual="pre_norm", position="alibi"),
    "ReLU": layout(activation="relu", residual="post_norm", attention=TOP_K),
    "dropout": layout(dropout=0.1, attention={**BOTH, "dropout": 0.1}),
    "dropout, reference": layout("reference", dropout=0.1, attention={**TOP_K, "dropout": 0.1}),
    "dropout, dense with scores": layout("auto", attention={**SCORES, "dropout": 0.1}),
    "a wide head": layout(attention=TOP_K, vocab_size=20000),
}
LAYOUTS = {**OFTEN, **SELDOM}


@pytest.mark.parametrize("name", [*OFTEN, *map(extended, SELDOM)])
def test_the_peak_on_a_cpu_is_within_ten_percent_of_the_plan(tmp_path, name):
    config = Config.model_validate(
        {
            **LAYOUTS[name],
            "optimizer": {"lr": 0.001, "gradient_clipping": None},
            "data": {"train": "none", "valid": "none"},
            "output": {"run_dir": str(tmp_path / "run")},
            "launch": {"device": "cpu", "timeout_seconds": 300},
            "deepspeed": {"zero_optimization": SMALL_BUCKETS},
        }
    )
    plan = make_plan(config)
    replicas = config.parallel.data_replicas
    planned = [stage.peak_bytes for stage in plan.stages for _ in range(replicas)]
    assert planned == pytest.approx(measure_peaks(config), rel=0.1)
