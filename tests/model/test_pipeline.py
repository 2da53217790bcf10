"""What crosses from one stage to the next."""

import pytest
import torch

from megatron_gptx.model.pipeline import pack, unpack

HIDDEN_SIZE, NUM_HEADS = 12, 3


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def boundary(request):
    """Return activations of two rows of five tokens, a carry, and what a stage gets of them."""
    x = torch.randn(2, 5, HIDDEN_SIZE).to(request.param)
    carry = torch.randn(2, NUM_HEADS, 5, 5)
    # As DeepSpeed hands it over: a copy of a tensor that takes a gradient.
    received = pack(x, carry).requires_grad_()
    return x, carry, received, received.clone()


def test_a_stage_gets_what_the_one_before_sent(boundary):
    x, carry, received, copied = boundary
    assert received.shape == (2, 5, HIDDEN_SIZE + NUM_HEADS * 5)
    got_x, got_carry = unpack(copied, HIDDEN_SIZE, NUM_HEADS, x.dtype)
    assert torch.equal(got_x, x)
    assert torch.equal(got_carry, carry)


def test_the_carry_takes_the_memory_of_what_came_and_the_activations_do_not(boundary):
    x, _, _, copied = boundary
    got_x, got_carry = unpack(copied, HIDDEN_SIZE, NUM_HEADS, x.dtype)
    places = [one.untyped_storage().data_ptr() for one in (copied, got_carry, got_x)]
    assert places[0] == places[1] != places[2]


def test_a_layer_may_write_to_the_carry(boundary):
    x, carry, received, copied = boundary
    got_x, got_carry = unpack(copied, HIDDEN_SIZE, NUM_HEADS, x.dtype)
    got_carry.mul_(2)
    assert torch.equal(got_carry, 2 * carry)
    assert torch.equal(got_x, x)
    grad_x, grad_carry = torch.randn_like(x), torch.randn_like(carry)
    torch.autograd.backward([got_x, got_carry], [grad_x, grad_carry])
    assert torch.equal(received.grad, pack(grad_x, 2 * grad_carry))
