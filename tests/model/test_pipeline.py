"""What crosses from one stage to the next."""

import pytest
import torch

from megatron_gptx.model.pipeline import pack, unpack

HIDDEN_SIZE, NUM_HEADS = 12, 3


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def boundary(request):
    """Return activations of two rows of five tokens, scores, and what a stage gets of them."""
    x = torch.randn(2, 5, HIDDEN_SIZE).to(request.param)
    scores = torch.randn(2, NUM_HEADS, 5, 5)
    # As DeepSpeed hands it over: a copy of a tensor that takes a gradient.
    received = pack(x, scores).requires_grad_()
    return x, scores, received, received.clone()


def test_a_stage_gets_what_the_one_before_sent(boundary):
    x, scores, received, copied = boundary
    assert received.shape == (2, 5, HIDDEN_SIZE + NUM_HEADS * 5)
    got_x, got_scores = unpack(copied, HIDDEN_SIZE, NUM_HEADS, x.dtype)
    assert torch.equal(got_x, x)
    assert torch.equal(got_scores, scores)


def test_the_scores_take_the_memory_of_what_came_and_the_activations_do_not(boundary):
    x, _, _, copied = boundary
    got_x, got_scores = unpack(copied, HIDDEN_SIZE, NUM_HEADS, x.dtype)
    places = [one.untyped_storage().data_ptr() for one in (copied, got_scores, got_x)]
    assert places[0] == places[1] != places[2]


def test_a_layer_may_write_to_the_scores(boundary):
    x, scores, received, copied = boundary
    got_x, got_scores = unpack(copied, HIDDEN_SIZE, NUM_HEADS, x.dtype)
    got_scores.mul_(2)
    assert torch.equal(got_scores, 2 * scores)
    assert torch.equal(got_x, x)
    grad_x, grad_prev_scores = torch.randn_like(x), torch.randn_like(scores)
    torch.autograd.backward([got_x, got_scores], [grad_x, grad_prev_scores])
    assert torch.equal(received.grad, pack(grad_x, 2 * grad_prev_scores))
