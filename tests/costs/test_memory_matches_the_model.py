"""Planned activations against those of the model, measured on the CPU.

Dropout is left out: its masks take another form on the CPU than on a GPU.
"""

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from megatron_gptx.costs.memory import activation_memory
from megatron_gptx.model.layer_list import build_layers
from megatron_gptx.model.layer_runner import LayerRunner

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SCORES = {"residual_scores": True}
VARIANTS = [
    {"residual": "rezero", "attention": {"top_k": 8}},
    {"residual": "rezero", "attention": {"top_k": 8, **SCORES}, "macaron": True},
    {"residual": "pre_norm", "position": "none", "activation": "relu"},
    {"residual": "post_norm", "position": "alibi", "activation": "swiglu"},
    {"residual": "pre_norm", "attention": SCORES},
    {"residual": "rezero", "attention": {"top_k": 64}, "position": "learned"},
]


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of every tensor that an operator made and nobody has dropped yet."""

    def __init__(self):
        super().__init__()
        self.known, self.now, self.peak = set(), 0, 0

    def ignore(self, tensors):
        self.known |= {tensor.untyped_storage()._cdata for tensor in tensors}

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.add(leaf.untyped_storage())
        return result

    def add(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.drop, key, size)

    def drop(self, key, size):
        self.known.discard(key)
        self.now -= size


def measure(config):
    """Return the bytes alive after one forward pass, and the most alive until the gradients."""
    model = config.model
    layers = build_layers(model, 0)
    live = LiveBytes()
    for layer in layers:
        layer.to(DTYPES[config.precision])
        for parameter in layer.parameters():
            parameter.grad = torch.zeros_like(parameter)
            live.ignore([parameter, parameter.grad])
    group = config.training.checkpoint_activations
    runner = LayerRunner(model, layers[:-1], first=0, seed=0, checkpoint_group=group)
    tokens = torch.randint(model.vocab_size, (config.batch.micro_size, model.seq_length))
    with live:
        x, _ = runner.run(tokens, None, training=True)
        loss, _ = layers[-1](x, None, target=(tokens, torch.tensor(1)))
        kept = live.now
        loss.backward()
    return kept, live.peak


@pytest.fixture
def make_measured(make_config):
    """Return a function to a configuration in which activations outweigh all else."""

    def make(variant, precision, *, num_layers=3, group=0):
        sizes = {"hidden_size": 64, "num_heads": 4, "seq_length": 64, "vocab_size": 100}
        return make_config(
            model={**sizes, **variant, "num_layers": num_layers},
            training={"accumulation_steps": 1, "checkpoint_activations": group},
            precision=precision,
        )

    return make


def planned(config):
    return activation_memory(config, 0, config.model.num_pipeline_layers, 0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_block_keeps_what_is_planned(make_measured, variant, precision):
    few, many = (make_measured(variant, precision, num_layers=n) for n in (2, 4))
    kept = measure(many)[0] - measure(few)[0]
    assert planned(many).kept - planned(few).kept == pytest.approx(kept, rel=0.02)


@pytest.mark.parametrize("group", [0, 1, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_the_peak_stays_below_the_plan_but_near_it(make_measured, variant, precision, group):
    config = make_measured(variant, precision, num_layers=4, group=group)
    peak = measure(config)[1]
    assert peak < planned(config).total < 1.4 * peak


def test_a_wide_head_sets_the_peak(make_measured):
    config = make_measured({"vocab_size": 20000}, "bf16", num_layers=1)
    assert planned(config).total == pytest.approx(measure(config)[1], rel=0.05)
