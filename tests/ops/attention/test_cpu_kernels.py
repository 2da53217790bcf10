"""The compiled kernels choose the reference's keys, and differentiate as accurately as it does."""

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from megatron_gptx.config.errors import UserError
from megatron_gptx.ops.attention.cpu_kernels import fused_attention
from megatron_gptx.ops.attention.dispatch import attention, attention_reference, unsupported
from megatron_gptx.ops.attention.options import AttentionOptions
from tests.numerics import assert_all_as_accurate, assert_as_accurate
from tests.ops.attention_inputs import SLOPES, B, H, random_inputs, run
from tests.ops.conftest import VARIANTS
from tests.pairs import pairwise

pytestmark = pytest.mark.usefixtures("kernels")

# Queries, keys, width, top_k: vectors that are full, partial, and single; rows shorter than top_k;
# few and many classes; more keys kept than there are classes; a block that ends early.
SHAPES = [
    (64, 64, 16, 8),
    (65, 65, 5, 3),
    (7, 40, 33, 8),
    (1, 50, 16, 4),
    (130, 300, 7, 40),
    (90, 300, 20, 100),
    (20, 20, 8, 20),
    (20, 20, 8, 25),
    (1, 1, 1, 1),
    (300, 2000, 3, 8),
]
# Whether a layer receives scores, and whether it returns them.
LAYERS = {"only": (False, False), "first": (False, True), "inner": (True, True)}
LAYERS["last"] = (True, False)


def results(
    form: Callable, inputs: list[Tensor], *, returns: bool, **options
) -> tuple[Tensor, ...]:
    """Return output, scores where there are any, and the gradients of a sum over both."""
    q, k, v, *prev_scores = inputs
    given = prev_scores[0] if prev_scores else None
    out, scores = form(q, k, v, prev_scores=given, return_scores=returns, **options)
    total = out.double().sin().sum() + (scores.double().cos().sum() if returns else 0)
    return (out, *([scores] if returns else []), *torch.autograd.grad(total, inputs))


def kept_by_kernel(form: Callable, q: Tensor, k: Tensor, **options) -> tuple[Tensor, Tensor]:
    """Return kept keys, (b, h, s, n), and the (b, h, s, t) weights."""
    _, _, kept, weights = torch.ops.gptx.topk_attention(
        *(q, k, torch.zeros_like(k), options.get("prev_scores"), options.get("slopes")),
        *(options["top_k"], options.get("row_start"), 0.0, 0, False, form.keywords["variant"]),
    )
    assert torch.equal(kept == -1, (kept == -1) & (weights == 0))
    dense = torch.zeros(*q.shape[:3], k.shape[2])
    return kept, dense.scatter_add_(-1, kept.clamp(min=0).long(), weights)


def kept_by_reference(q: Tensor, k: Tensor, **options) -> Tensor:
    """Return the (b, h, s, t) weights: what attention makes of one-hot values."""
    values = torch.eye(k.shape[-2]).expand(*k.shape[:2], -1, -1)
    return attention_reference(q, k, values, **options)[0]


@pytest.mark.parametrize(
    ("variant", "shape", "levels", "slopes"),
    pairwise(product(VARIANTS, SHAPES, [1, 3, 50], [None, SLOPES])),
    indirect=["variant"],
)
def test_the_kept_keys_are_the_references_whatever_ties(form, shape, levels, slopes):
    s, t, d, top_k = shape
    # Without queries the scores are the previous ones: the same bits on both sides.
    generator = torch.Generator().manual_seed(levels)
    prev_scores = torch.randint(-levels, levels + 1, (B, H, s, t), generator=generator).float()
    q, k = torch.zeros(B, H, s, d), torch.zeros(B, H, t, d)
    options = {"slopes": slopes, "top_k": top_k, "prev_scores": prev_scores}
    kept, weights = kept_by_kernel(form, q, k, **options)
    expected = kept_by_reference(q, k, **options)
    assert torch.equal(weights != 0, expected != 0)
    num_kept = (weights != 0).sum(-1)
    assert torch.equal(num_kept[0, 0], torch.arange(t - s + 1, t + 1).clamp(max=top_k))
    behind = torch.arange(1, kept.shape[-1]) >= num_kept.unsqueeze(-1)
    assert ((kept[..., 1:] > kept[..., :-1]) | behind).all()


@pytest.mark.parametrize(
    ("variant", "shape", "layer", "slopes"),
    pairwise(product(VARIANTS, SHAPES, LAYERS, [None, SLOPES])),
    indirect=["variant"],
)
def test_the_kernels_are_as_accurate_as_the_reference(form, shape, layer, slopes):
    (s, t, d, top_k), (receives, returns) = shape, LAYERS[layer]
    inputs = random_inputs(s=s, t=t, d=d, has_prev_scores=receives, dtype=torch.float32)
    widened = [x.detach().double().requires_grad_() for x in inputs]
    options = {"slopes": slopes, "top_k": top_k, "returns": returns}
    actual = results(form, inputs, **options)
    reference = results(attention_reference, inputs, **options)
    exact = results(attention_reference, widened, **options)
    assert [(x.dtype, x.shape) for x in actual] == [(x.dtype, x.shape) for x in reference]
    assert_all_as_accurate(actual, reference, exact)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("has_prev_scores", [True, False])
def test_half_precision_inputs_are_computed_in_float32(form, has_prev_scores, dtype):
    inputs = random_inputs(s=64, t=64, d=16, has_prev_scores=has_prev_scores, dtype=dtype)
    widened = [x.detach().double().requires_grad_() for x in inputs]
    options = {"slopes": SLOPES, "top_k": 8}
    actual = run(form, inputs, **options)
    reference = run(attention_reference, inputs, **options)
    assert [x.dtype for x in actual] == [x.dtype for x in reference]
    assert_all_as_accurate(actual, reference, run(attention_reference, widened, **options))


def test_a_score_depends_on_its_query_and_its_key_alone(form):
    q, k, v, prev_scores = (x.detach() for x in random_inputs(s=200, t=200, dtype=torch.float32))
    options = {"slopes": SLOPES, "top_k": 8, "return_scores": True}
    _, among_all = form(q, k, v, prev_scores=prev_scores, **options)
    _, alone = form(q[:, :, -3:], k, v, prev_scores=prev_scores[:, :, -3:], **options)
    assert torch.equal(alone, among_all[:, :, -3:])


def test_vector_widths_that_multiply_and_add_at_once_agree_in_every_bit():
    q, k, v, prev_scores = (x.detach() for x in random_inputs(s=200, t=200, dtype=torch.float32))
    found = [
        torch.ops.gptx.topk_attention(q, k, v, prev_scores, SLOPES, 8, None, 0.0, 0, True, name)[
            1:3
        ]
        for name in torch.ops.gptx.cpu_variants()
        if name != "default"
    ]
    assert all(torch.equal(a, b) for one in found for a, b in zip(one, found[0], strict=True))


@pytest.mark.parametrize("layout", ["packed", "transposed", "every second", "expanded"])
def test_inputs_may_lie_anyhow_in_memory(form, layout):
    generator = torch.Generator().manual_seed(0)
    s, d = 40, 12
    if layout == "packed":  # as the model's one projection leaves them
        q, k, v = torch.randn(B, s, 3, H, d, generator=generator).permute(2, 0, 3, 1, 4).unbind()
    elif layout == "transposed":
        q, k, v = torch.randn(3, B, H, d, s, generator=generator).transpose(-2, -1).unbind()
    elif layout == "every second":
        q, k, v = torch.randn(3, B, H, s, 2 * d, generator=generator)[..., ::2].unbind()
    else:
        q, k, v = torch.randn(3, 1, H, s, d, generator=generator).expand(-1, B, -1, -1, -1).unbind()
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]
    widened = [x.detach().double().requires_grad_() for x in inputs]
    exact = run(attention_reference, widened, slopes=SLOPES, top_k=5)
    reference = run(attention_reference, inputs, slopes=SLOPES, top_k=5)
    assert_all_as_accurate(run(form, inputs, slopes=SLOPES, top_k=5), reference, exact)


@pytest.mark.parametrize("layer", LAYERS)
def test_results_repeat_bit_by_bit_on_any_number_of_threads(form, layer):
    receives, returns = LAYERS[layer]
    inputs = random_inputs(s=150, t=300, d=24, has_prev_scores=receives, dtype=torch.float32)
    before = torch.get_num_threads()
    runs = []
    try:
        for threads in (1, 1, 2):
            torch.set_num_threads(threads)
            runs.append(results(form, inputs, slopes=SLOPES, top_k=8, returns=returns))
    finally:
        torch.set_num_threads(before)
    for others in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], others, strict=True))


@pytest.mark.parametrize(("use_out", "use_scores"), [(True, False), (False, True)])
def test_a_gradient_arrives_through_either_result_alone(form, use_out, use_scores):
    inputs = random_inputs(s=30, t=30, dtype=torch.float32)
    widened = [x.detach().double().requires_grad_() for x in inputs]

    def gradients(form: Callable, inputs: list[Tensor]) -> tuple[Tensor, ...]:
        *qkv, prev_scores = inputs
        out, scores = form(
            *qkv, slopes=SLOPES, top_k=3, prev_scores=prev_scores, return_scores=True
        )
        total = out.sin().sum() * use_out + scores.cos().sum() * use_scores
        if not use_out:
            total = scores.cos().sum()
        elif not use_scores:
            total = out.sin().sum()
        found = torch.autograd.grad(total, inputs, allow_unused=True)
        return tuple(
            torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs, strict=True)
        )

    reference = gradients(attention_reference, inputs)
    assert_all_as_accurate(
        gradients(form, inputs), reference, gradients(attention_reference, widened)
    )


@pytest.mark.parametrize("needed", range(4))
def test_a_gradient_for_one_input_alone_is_what_it_is_among_all(form, needed):
    inputs = random_inputs(s=30, t=30, dtype=torch.float32)
    everything = run(form, inputs, top_k=3)[2:]
    for i, x in enumerate(inputs):
        x.requires_grad_(i == needed)
    q, k, v, prev_scores = inputs
    out, scores = form(q, k, v, prev_scores=prev_scores, return_scores=True, top_k=3)
    total = out.double().sin().sum() + scores.double().cos().sum()
    assert torch.equal(torch.autograd.grad(total, inputs[needed])[0], everything[needed])


def test_the_backward_pass_keeps_no_square_tensor(form):
    q, k, v, prev_scores = random_inputs(s=50, t=50, dtype=torch.float32)
    saved: list[int] = []

    def note(x: Tensor) -> Tensor:
        saved.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        form(q, k, v, slopes=SLOPES, top_k=2, prev_scores=prev_scores, return_scores=True)
    assert saved
    assert max(saved) < B * H * 50 * 50


def test_a_recomputed_forward_pass_gives_the_same_gradients(form):
    q, k, v, prev_scores = random_inputs(s=40, t=40, dtype=torch.float32)

    def apply(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        options = {"slopes": SLOPES, "top_k": 3}
        out, scores = form(q, k, v, prev_scores=prev_scores, return_scores=True, **options)
        return form(out, k, v, prev_scores=scores, **options)[0].sin().sum()

    inputs = (q, k, v, prev_scores)
    kept = torch.autograd.grad(apply(q, k, v), inputs)
    again = torch.autograd.grad(checkpoint(apply, q, k, v, use_reentrant=False), inputs)
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))


def test_scores_that_are_added_in_place_are_those_that_new_ones_would_be(form):
    q, k, v, prev_scores = random_inputs(s=50, t=50, dtype=torch.float32)
    prev_scores = prev_scores.detach().tril().requires_grad_()

    def layers(*, reuse: bool) -> tuple[Tensor, ...]:
        options = {"slopes": SLOPES, "top_k": 3, "return_scores": True, "reuse_scores": reuse}
        scores = prev_scores.clone()  # one tensor with a history of its own, as a layer's output is
        first = scores
        for _ in range(3):
            out, scores = form(q, k, v, prev_scores=scores, **options)
        assert (scores.data_ptr() == first.data_ptr()) is reuse
        gradients = torch.autograd.grad(
            out.sin().sum() + scores.cos().sum(), (q, k, v, prev_scores)
        )
        return (out, scores, *gradients)

    for ours, expected in zip(layers(reuse=True), layers(reuse=False), strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize(("b", "s"), [(0, 5), (2, 0)])
def test_no_queries_give_no_output(form, b, s):
    q, k, v = (torch.zeros(b, H, n, 4, requires_grad=True) for n in (s, 5, 5))
    out, scores = form(q, k, v, top_k=3, return_scores=True)
    assert (out.shape, scores.shape) == ((b, H, s, 4), (b, H, s, 5))
    (out.sum() + scores.sum()).backward()
    assert not v.grad.any()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("top_k", [3, 20, 100])
def test_a_score_that_is_no_number_makes_its_row_no_number(form, bad, top_k):
    q, k, v, prev_scores = (x.detach() for x in random_inputs(s=150, t=150, dtype=torch.float32))
    prev_scores[1, 2, 100, 7] = prev_scores[0, 1, 50, 60] = bad  # the latter in the row's future
    options = {"top_k": top_k, "prev_scores": prev_scores}
    out = form(q, k, v, **options)[0]
    assert out[1, 2, 100].isnan().all()
    out[1, 2, 100] = 0
    assert out.isfinite().all()


def test_a_previous_score_of_minus_infinity_masks_a_key(form):
    q, k, v, prev_scores = (x.detach() for x in random_inputs(s=30, t=30, dtype=torch.float32))
    prev_scores[..., 1::2] = -torch.inf
    options = {"top_k": 8, "prev_scores": prev_scores}
    widened = [x.double() for x in (q, k, v)]
    exact = attention_reference(*widened, top_k=8, prev_scores=prev_scores.double())[0]
    reference = attention_reference(q, k, v, **options)[0]
    assert_as_accurate(form(q, k, v, **options)[0], reference, exact)


BAD = {
    "top_k must be at least 1": {"top_k": 0},
    "dropout_p must be in": {"dropout_p": 1.0},
    "row_start must be .b, s. int32": {"row_start": torch.zeros(2, 5)},
    "row_start must be .b, s. int32 .* here .2, 5.": {
        "row_start": torch.zeros(2, 4, dtype=torch.int32)
    },
    "must be .b, h, s, d.": {"q": torch.zeros(3, 5, 4)},
    "5 queries for 4 keys": {"k": torch.zeros(2, 3, 4, 4), "v": torch.zeros(2, 3, 4, 4)},
    "must agree in batch": {"k": torch.zeros(2, 1, 5, 4)},
    "must agree in batch, heads and width": {"v": torch.zeros(2, 3, 5, 6)},
    "must all be float32": {"k": torch.zeros(2, 3, 5, 4, dtype=torch.bfloat16)},
    "slopes must be one float32 per head": {"slopes": torch.zeros(2)},
    "prev_scores must be .b, h, s, t. float32": {"prev_scores": torch.zeros(2, 3, 5, 6)},
    "float32, here .* BFloat16": {"prev_scores": torch.zeros(2, 3, 5, 5).bfloat16()},
}


@pytest.mark.parametrize("message", BAD)
def test_a_wrong_input_is_named(message):
    good = {name: torch.zeros(2, 3, 5, 4) for name in ("q", "k", "v")}
    good |= {"slopes": None, "top_k": 3, "prev_scores": None, "return_scores": False}
    good |= {"row_start": None, "dropout_p": 0.0, "seed": 0}
    with pytest.raises(RuntimeError, match=message):
        torch.ops.gptx.topk_attention(**(good | BAD[message]))


def test_an_unknown_variant_is_named():
    q = torch.zeros(2, 3, 5, 4)
    with pytest.raises(RuntimeError, match="cannot run the variant 'mmx'"):
        torch.ops.gptx.topk_attention(q, q, q, None, None, 3, None, 0.0, 0, False, "mmx")


def test_attention_uses_the_kernels_where_they_can_run():
    q, k, v, _ = random_inputs(s=40, t=40, dtype=torch.float32)
    fused = attention(q, k, v, slopes=SLOPES, top_k=3, backend="fused")[0]
    assert (
        fused.grad_fn.name() != attention(q, k, v, top_k=3, backend="reference")[0].grad_fn.name()
    )
    assert torch.equal(attention(q, k, v, slopes=SLOPES, top_k=3)[0], fused)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": torch.float64}, "float64"),
        ({"top_k": None}, "dense"),
    ],
)
def test_kernels_that_cannot_run_are_an_error_only_where_they_are_asked_for(change, reason):
    options = {"dtype": torch.float32, "top_k": 3, **change}
    assert reason in unsupported("cpu", **options, num_keys=13)
    assert "xpu" in unsupported("xpu", torch.float32, top_k=3, num_keys=13)
    q, k, v, _ = random_inputs(dtype=options.pop("dtype"))
    assert attention(q, k, v, **options)[0].shape == q.shape
    with pytest.raises(UserError, match=reason):
        attention(q, k, v, **options, backend="fused")


def test_a_second_derivative_is_refused_and_not_taken_for_zero(kernels):
    q, k, v, *_ = random_inputs(s=8, t=8, dtype=torch.float32)
    out, _ = fused_attention(q, k, v, AttentionOptions(top_k=3))
    (grad,) = torch.autograd.grad(out.sin().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once only"):
        grad.sum().backward()
