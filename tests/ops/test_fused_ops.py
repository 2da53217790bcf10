"""PyTorch knows what the compiled operations read, write and return, whoever traces them."""

from itertools import product

import pytest
import torch
from torch import Tensor

from megatron_gptx.ops.attention.dispatch import attention
from megatron_gptx.ops.attention.topk_softmax import topk_softmax
from megatron_gptx.ops.linear import linear
from tests.ops.attention_inputs import SLOPES, random_inputs
from tests.pairs import extended

pytestmark = pytest.mark.usefixtures("kernels")

# Whether a layer receives scores, and whether it returns them.
LAYERS = {"only": (False, False), "first": (False, True), "inner": (True, True)}
LAYERS["last"] = (True, False)
# Each layer once, each type with and without scores to receive.
OF_BOTH_TYPES = [("only", True), ("first", False), ("inner", True), ("last", False)]


@pytest.mark.parametrize(
    ("layer", "half"),
    [case if case in OF_BOTH_TYPES else extended(*case) for case in product(LAYERS, [False, True])],
)
def test_pytorch_finds_nothing_wrong_with_the_ops(layer, half):
    receives, returns = LAYERS[layer]
    dtype = torch.bfloat16 if half else torch.float32
    q, k, v, *given = random_inputs(s=6, t=9, has_prev_scores=receives, dtype=dtype)
    prev_scores = given[0] if given else None
    forward = torch.ops.gptx.topk_attention
    arguments = (q, k, v, prev_scores, SLOPES, 3, None, 0.0, 0, returns)
    torch.library.opcheck(forward.default, arguments)

    detached = [x.detach() if isinstance(x, Tensor) else x for x in arguments]
    out, scores, kept, weights = forward(*detached)
    torch.library.opcheck(
        torch.ops.gptx.topk_attention_backward.default,
        (out, scores if returns else None, *detached[:3], kept, weights, None, 0.0, 0, receives),
    )
    if receives:
        torch.library.opcheck(
            torch.ops.gptx.topk_attention_.default,
            (*detached[:3], prev_scores.detach().tril(3), SLOPES, 3, None, 0.0, 0),
            test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
        )
        torch.library.opcheck(
            torch.ops.gptx.topk_attention_backward_.default,
            (out, prev_scores.detach().clone(), *detached[:3], kept, weights, None, 0.0, 0),
        )


def test_the_compiler_sees_through_every_op():
    q, k, v, *_ = (x.detach() for x in random_inputs(s=16, t=16, dtype=torch.float32))
    weight, labels = torch.randn(5, q.shape[-1]), torch.arange(16) % 5

    def every(q, k, v):
        mixed = attention(q, k, v, slopes=SLOPES, top_k=3, backend="fused")[0]
        probs = topk_softmax(q @ k.transpose(-2, -1), 3, backend="fused")
        hidden = linear(mixed + probs @ v, weight, activation="gelu", backend="fused")
        logits = hidden[0, 0].clone()
        return hidden, torch.ops.gptx.cross_entropy_(logits, labels, -100)

    compiled = torch.compile(every, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        for actual, expected in zip(compiled(q, k, v), every(q, k, v), strict=True):
            assert torch.allclose(actual, expected)
