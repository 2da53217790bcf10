"""LayerNorm and its choice of kernel."""

import torch
from torch import nn

from megatron_gptx.ops.layer_norm import LayerNorm, layer_norm_note


def test_it_is_torchs_layer_norm_on_the_cpu():
    torch.manual_seed(0)
    ours, theirs = LayerNorm(8), nn.LayerNorm(8)
    with torch.no_grad():
        ours.weight.normal_()
        ours.bias.normal_()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 8)
    assert torch.equal(ours(x), theirs(x))


def test_the_note_says_why_apex_is_not_used():
    assert "CPU" in layer_norm_note("cpu")
    assert "Apex" in layer_norm_note("cuda")
