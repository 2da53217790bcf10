"""Attention as a GPU computes it is the attention that the reference defines.

The products are PyTorch's; the kernels between them are emulated, one fiber per thread.
"""

from itertools import product

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from megatron_gptx.ops.attention.cuda_kernels import composed_attention
from megatron_gptx.ops.attention.dispatch import attention, attention_reference
from megatron_gptx.ops.attention.options import AttentionOptions
from tests.numerics import assert_all_as_accurate
from tests.ops.attention_inputs import SLOPES, D, H, T, quantised_inputs, random_inputs, run
from tests.pairs import pairwise

OPS = torch.ops.gptx
pytestmark = pytest.mark.usefixtures("emulated")


def composed(*qkv: Tensor, top_k: int = 3, **options) -> tuple[Tensor, Tensor | None]:
    """Attend, with the same seed in every call."""
    torch.manual_seed(3)
    return composed_attention(*qkv, AttentionOptions(top_k=top_k, **options))


def reference(*qkv: Tensor, **options) -> tuple[Tensor, Tensor | None]:
    """Attend as defined, with the same seed in every call."""
    torch.manual_seed(3)
    return attention_reference(*qkv, **options)


def starts(s: int, t: int) -> Tensor:
    """Return (b, s) first visible keys, one of them beyond its query, one far behind the last."""
    rows = torch.stack([torch.arange(t - s, t) // 3, torch.arange(t - s, t).clamp(max=5)]).int()
    rows[0, s // 2] = t
    rows[1, -1] = t - 2
    return rows


@pytest.mark.parametrize(
    ("rows", "documents", "dropout_p", "has_prev_scores", "dtype"),
    pairwise(
        product(
            [(64, 3), (64, 100), (20, 8), (1, 40)],
            [True, False],
            [0.0, 0.3],
            [True, False],
            [torch.float32, torch.bfloat16, torch.float16],
        )
    ),
)
def test_it_is_as_accurate_as_the_reference(rows, documents, dropout_p, has_prev_scores, dtype):
    s, top_k = rows
    inputs = random_inputs(s=s, t=64, d=16, has_prev_scores=has_prev_scores, dtype=dtype)
    widened = [x.detach().double().requires_grad_() for x in inputs]
    options = {"slopes": SLOPES, "top_k": top_k, "dropout_p": dropout_p}
    options["row_start"] = starts(s, 64) if documents else None
    actual, expected = run(composed, inputs, **options), run(reference, inputs, **options)
    assert [(x.dtype, x.shape) for x in actual] == [(x.dtype, x.shape) for x in expected]
    assert_all_as_accurate(actual, expected, run(reference, widened, **options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("d", [3, 24, 272])
def test_vectors_of_any_size_are_as_accurate(d, dtype):
    inputs = random_inputs(s=30, t=37, d=d, dtype=dtype)
    widened = [x.detach().double().requires_grad_() for x in inputs]
    options = {"slopes": SLOPES, "top_k": 20, "row_start": starts(30, 37)}
    actual, expected = run(composed, inputs, **options), run(reference, inputs, **options)
    assert_all_as_accurate(actual, expected, run(reference, widened, **options))


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_loss_of_the_scores_has_gradients_too(weight):
    def gradients(form, inputs: list[Tensor]) -> tuple[Tensor, ...]:
        q, k, v, prev_scores = inputs
        out, scores = form(
            q, k, v, prev_scores=prev_scores, slopes=SLOPES, top_k=3, return_scores=True
        )
        # The gradient of a sum is one number for all, in no memory of its own.
        loss = scores.sum() + (weight * out.sum() if weight else 0)
        return torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)

    inputs = random_inputs(s=20, t=20, d=16, dtype=torch.float32)
    widened = [x.detach().double().requires_grad_() for x in inputs]
    actual, expected = gradients(composed, inputs), gradients(reference, inputs)
    assert_all_as_accurate(actual, expected, gradients(reference, widened))


@pytest.mark.parametrize("slopes", [None, SLOPES])
@pytest.mark.parametrize("has_prev_scores", [True, False])
def test_of_equal_scores_the_most_recent_win(slopes, has_prev_scores):
    q, k, _, *prev_scores = (x.detach() for x in quantised_inputs(has_prev_scores=has_prev_scores))
    one_hot = torch.eye(T).expand(*k.shape[:2], -1, -1)
    options = {"slopes": slopes, "top_k": 3}
    options["prev_scores"] = prev_scores[0] if has_prev_scores else None
    actual, expected = (form(q, k, one_hot, **options)[0] for form in (composed, reference))
    assert torch.equal(actual != 0, expected != 0)


def test_the_scores_are_those_of_the_reference_and_may_take_the_place_of_the_previous_ones():
    q, k, v, prev_scores = (x.detach() for x in quantised_inputs(has_prev_scores=True))
    prev_scores = prev_scores.tril()
    options = {"top_k": 3, "return_scores": True}
    _, expected = reference(q, k, v, prev_scores=prev_scores, **options)
    out, scores = composed(q, k, v, prev_scores=prev_scores, **options)
    assert torch.equal(scores, expected)
    assert scores.data_ptr() != prev_scores.data_ptr()
    again, in_place = composed(q, k, v, prev_scores=prev_scores, reuse_scores=True, **options)
    assert in_place.data_ptr() == prev_scores.data_ptr()
    assert torch.equal(in_place, expected)
    assert torch.equal(again, out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_that_share_one_buffer_of_scores_get_the_gradients_of_layers_that_do_not(dtype):
    def layers(form, inputs: list[Tensor], **options) -> tuple[Tensor, ...]:
        q, k, v = inputs
        total, scores = torch.zeros((), dtype=torch.float64), None
        for layer in range(3):
            turned = (x.roll(layer, -1) for x in (q, k, v))
            out, scores = form(
                *turned,
                slopes=SLOPES,
                top_k=3,
                prev_scores=scores,
                return_scores=layer < 2,
                **options,
            )
            total = total + out.double().sin().sum()
        return torch.autograd.grad(total, inputs)

    inputs = random_inputs(s=40, t=40, d=16, has_prev_scores=False, dtype=dtype)
    widened = [x.detach().double().requires_grad_() for x in inputs]
    expected, exact = layers(reference, inputs), layers(reference, widened)
    for reuse in (False, True):
        assert_all_as_accurate(layers(composed, inputs, reuse_scores=reuse), expected, exact)


def test_no_square_tensor_is_kept_for_the_backward_pass():
    q, k, v, _ = random_inputs(s=40, t=40, dtype=torch.float32)
    saved: list[int] = []

    def note(x: Tensor) -> Tensor:
        saved.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        composed(q, k, v, slopes=SLOPES, top_k=2, return_scores=True)
    assert max(saved) == max(q.numel(), 2 * H * 40 * 2)
    assert D < 40


def test_attention_on_a_gpu_is_this_one(monkeypatch):
    monkeypatch.setattr(torch.ops.gptx, "cuda_architectures", lambda: ["9.0"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    called = []

    def note(*arguments) -> tuple[Tensor, Tensor | None]:
        called.append(arguments)
        return composed_attention(*arguments)

    monkeypatch.setattr("megatron_gptx.ops.attention.dispatch.composed_attention", note)
    with FakeTensorMode(), torch.no_grad():
        q, k, v = torch.empty(3, 2, H, T, D, device="cuda").unbind()
        slopes = torch.empty(H, device="cuda")
        options = {"slopes": slopes, "top_k": 3, "return_scores": True, "backend": "fused"}
        out, scores = attention(q, k, v, **options)
        again, _ = attention(q, k, v, prev_scores=scores, reuse_scores=True, **options)
    assert len(called) == 2
    assert (out.device.type, out.shape, again.shape) == ("cuda", q.shape, q.shape)
    assert scores.shape == (2, H, T, T)


@pytest.mark.parametrize("d", [3, 16, 300])
@pytest.mark.parametrize("has_prev_scores", [True, False])
def test_the_order_in_which_threads_take_turns_changes_nothing(emulated, d, has_prev_scores):
    inputs = random_inputs(s=19, t=40, d=d, has_prev_scores=has_prev_scores, dtype=torch.bfloat16)
    options = {"slopes": SLOPES, "top_k": 5, "dropout_p": 0.2, "row_start": starts(19, 40)}
    found = []
    try:
        for order in range(3):
            emulated.take_turns(order)
            found.append(run(composed, inputs, **options))
    finally:
        emulated.take_turns(0)
    assert all(torch.equal(x, y) for other in found for x, y in zip(other, found[0], strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_vectors_may_lie_anyhow_in_memory(dtype):
    options = {"slopes": SLOPES, "top_k": 4}
    inputs = random_inputs(s=30, t=30, d=16, has_prev_scores=False, dtype=dtype)
    exact = run(reference, [x.detach().double().requires_grad_() for x in inputs], **options)
    expected = run(reference, inputs, **options)
    for spread in (
        lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        lambda x: torch.cat([x, x], -1)[..., :16],
        lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view_as(x),
    ):
        laid_out = [spread(x.detach()).requires_grad_() for x in inputs]
        assert_all_as_accurate(run(composed, laid_out, **options), expected, exact)


BAD = {
    "scores in strides": lambda s, k, w, v: OPS.topk_select_(s.mT, None, 2, None, False),
    "no key to keep": lambda s, k, w, v: OPS.topk_select_(s, None, 0, None, False),
    "other heads": lambda s, k, w, v: OPS.sum_of_kept(k, w, v[:, :1], 0.0, 0),
    "fewer keys than queries": lambda s, k, w, v: OPS.sum_of_kept(k, w, v[:, :, :3], 0.0, 0),
    "kept keys of another type": lambda s, k, w, v: OPS.sum_of_kept(k.long(), w, v, 0.0, 0),
    "values in float64": lambda s, k, w, v: OPS.sum_of_kept(k, w, v.double(), 0.0, 0),
    "gradients of another shape": lambda s, k, w, v: OPS.kept_gradients(
        v[..., 1:], v, k, w, 0.0, 0
    ),
    "pairs in bf16": lambda s, k, w, v: OPS.add_kept_(s.bfloat16(), k, w, None),
    "pairs with more queries": lambda s, k, w, v: OPS.add_kept_(s[..., :4].clone(), k, w, None),
    "pairs of other rows": lambda s, k, w, v: OPS.add_kept_(s[:, :, 1:].clone(), k, w, None),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_an_error(name):
    scores, v = torch.randn(2, H, 8, 8), torch.randn(2, H, 8, 4)
    kept, weights = OPS.topk_select_(scores, None, 2, None, False)
    with pytest.raises(RuntimeError, match=r"must|fewer|at least|are more"):
        BAD[name](scores, kept, weights, v)


def test_pytorch_finds_nothing_wrong_with_the_ops():
    scores, v = torch.randn(2, H, 6, 9), torch.randn(2, H, 9, 4)
    kept, weights = OPS.topk_select_(scores, SLOPES, 3, None, True)
    for op, arguments in (
        (OPS.topk_select_, (scores, SLOPES, 3, None, True)),
        (OPS.sum_of_kept, (kept, weights, v, 0.1, 7)),
        (OPS.kept_gradients, (v[:, :, :6], v, kept, weights, 0.1, 7)),
        (OPS.add_kept_, (torch.zeros(2, H, 6, 9), kept, weights, None)),
    ):
        torch.library.opcheck(op.default, arguments)


def test_no_queries_attend_to_nothing():
    q, k, v, _ = random_inputs(s=0, dtype=torch.float32)
    out, _ = composed(q, k, v, dropout_p=0.1)
    assert out.shape == q.shape
    out.sum().backward()
    assert not k.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_previous_scores_of_any_stride_and_type_are_added(dtype):
    q, k, v, _ = (x.detach() for x in random_inputs(s=20, t=20, dtype=torch.float32))
    b, h = q.shape[:2]
    prev_scores = torch.randn(h, b, 20, 20).to(dtype).transpose(0, 1)
    options = {"slopes": SLOPES, "top_k": 3, "return_scores": True}
    out, scores = composed(q, k, v, prev_scores=prev_scores, **options)
    expected, expected_scores = reference(q, k, v, prev_scores=prev_scores.float(), **options)
    assert scores.dtype == torch.float32
    assert torch.allclose(out, expected, atol=1e-5)
    assert torch.allclose(scores, expected_scores, atol=1e-5)
