"""A query sees nothing before its document: in every form of attention, forward and backward."""

from functools import partial

import pytest
import torch
from torch import Tensor

from megatron_gptx.ops.attention.dispatch import attention, attention_reference
from tests.numerics import assert_all_as_accurate
from tests.ops.attention_inputs import SLOPES, random_inputs, run

S, T = 60, 90
# Documents that begin within a panel of keys, at its edge, and at the last query.
BOUNDARIES = [[0, 7, 32, 75], [40, 64, 89]]


def starts(s: int = S, t: int = T) -> Tensor:
    """Return (b, s) first visible keys: where the document of each query begins."""
    rows = []
    for boundaries in BOUNDARIES:
        begins = torch.tensor([0, *boundaries])
        queries = torch.arange(t - s, t)
        rows.append(begins[torch.searchsorted(begins, queries, right=True) - 1])
    return torch.stack(rows).int()


@pytest.fixture(params=["kernels", "plain", "reference", "dense"])
def any_form(request):
    """Return every form of attention in turn."""
    if request.param == "reference":
        return partial(attention_reference, top_k=3)
    if request.param == "kernels":
        request.getfixturevalue("kernels")
        return partial(attention, top_k=3, backend="fused")
    return partial(attention, top_k=3 if request.param == "plain" else None, backend="reference")


@pytest.mark.parametrize("has_prev_scores", [True, False])
def test_what_lies_before_a_document_changes_nothing_in_it(any_form, has_prev_scores):
    q, k, v, *prev_scores = (
        x.detach()
        for x in random_inputs(s=S, t=T, has_prev_scores=has_prev_scores, dtype=torch.float32)
    )
    options = {"slopes": SLOPES, "row_start": starts(), "return_scores": has_prev_scores}
    options["prev_scores"] = prev_scores[0] if has_prev_scores else None
    out, scores = any_form(q, k, v, **options)
    # The second half of each batch's keys is another document for the last queries only.
    first = int(starts()[0, -1])
    k2, v2 = k.clone(), v.clone()
    k2[0, :, :first] += 1
    v2[0, :, :first] = 5
    changed, changed_scores = any_form(q, k2, v2, **options)
    inside = T - first
    assert torch.equal(changed[0, :, -inside:], out[0, :, -inside:])
    assert not torch.equal(changed[0, :, :-inside], out[0, :, :-inside])
    if has_prev_scores:
        assert torch.equal(changed_scores[0, :, -inside:], scores[0, :, -inside:])
        assert not scores[0, :, -inside:, :first].any()


@pytest.mark.parametrize(
    ("has_prev_scores", "top_k"),
    [(has_prev_scores, top_k) for has_prev_scores in (True, False) for top_k in (3, 20, 100)],
)
def test_documents_are_computed_as_accurately_as_by_the_reference(form, has_prev_scores, top_k):
    inputs = random_inputs(s=S, t=T, d=16, has_prev_scores=has_prev_scores, dtype=torch.float32)
    widened = [x.detach().double().requires_grad_() for x in inputs]
    options = {"slopes": SLOPES, "top_k": top_k, "row_start": starts()}
    reference = run(attention_reference, inputs, **options)
    exact = run(attention_reference, widened, **options)
    assert_all_as_accurate(run(form, inputs, **options), reference, exact)
    plain = run(lambda *x, **o: attention(*x, **o, backend="reference"), inputs, **options)
    assert_all_as_accurate(plain, reference, exact)


def test_gradients_of_documents_are_those_of_finite_differences():
    inputs = random_inputs(s=5, t=9)
    options = {"slopes": SLOPES, "top_k": 3, "row_start": starts(5, 9), "return_scores": True}
    for form in (attention, attention_reference):
        assert torch.autograd.gradcheck(
            lambda q, k, v, p, form=form: form(q, k, v, prev_scores=p, **options),
            inputs,
            fast_mode=True,
        )


@pytest.mark.parametrize("has_prev_scores", [True, False])
def test_a_query_that_sees_nothing_gets_nothing(any_form, has_prev_scores):
    inputs = random_inputs(s=S, t=T, has_prev_scores=has_prev_scores, dtype=torch.float32)
    row_start = starts()
    row_start[1, 10] = T
    out, *rest = run(any_form, inputs, slopes=SLOPES, row_start=row_start)
    assert not out[1, :, 10].any()
    assert out[1, :, 11].all()
    assert all(x.isfinite().all() for x in rest)
    grad_q = rest[-4] if has_prev_scores else rest[-3]
    if not has_prev_scores:
        assert not grad_q[1, :, 10].any()
        assert grad_q[1, :, 11].any()


def test_added_scores_hold_nothing_that_is_not_seen(form):
    q, k, v = (
        x.detach() for x in random_inputs(s=S, t=T, has_prev_scores=False, dtype=torch.float32)
    )
    options = {"slopes": SLOPES, "row_start": starts(), "return_scores": True}
    _, prev_scores = form(q, k, v, **options)
    _, expected = form(q, k, v, prev_scores=prev_scores, **options)
    _, scores = form(q, k, v, prev_scores=prev_scores, reuse_scores=True, **options)
    assert torch.equal(scores, expected)


@pytest.mark.parametrize("beyond", [-200, -1, T + 70, 10**8])
@pytest.mark.parametrize("has_prev_scores", [True, False])
def test_a_start_outside_the_row_means_all_keys_or_none(form, has_prev_scores, beyond):
    inputs = random_inputs(s=S, t=T, d=16, has_prev_scores=has_prev_scores, dtype=torch.float32)
    given, meant = starts(), starts()
    given[0, 10], meant[0, 10] = beyond, 0 if beyond < 0 else T
    options = {"slopes": SLOPES, "top_k": 3}
    actual = run(form, inputs, **options, row_start=given)
    expected = run(form, inputs, **options, row_start=meant)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
