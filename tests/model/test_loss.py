"""The loss counts each label that counts once."""

import torch
from torch.nn.functional import cross_entropy

from megatron_gptx.config.batch import IGNORE
from megatron_gptx.model.head import token_loss

GENERATOR_SEED = 0
B, S, V = 4, 5, 7


def loss_of(logits: torch.Tensor, labels: torch.Tensor, num_tokens: torch.Tensor) -> torch.Tensor:
    """Return the loss of logits that the head leaves as they are."""
    same = torch.eye(V, dtype=logits.dtype)
    return token_loss(logits, same, (labels, num_tokens), backend="reference")


def random_batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(GENERATOR_SEED)
    logits = torch.randn(B, S, V, generator=generator)
    labels = torch.randint(V, (B, S), generator=generator)
    labels[0, :4] = IGNORE
    return logits, labels


def test_the_loss_is_the_mean_over_labels_that_count():
    logits, labels = random_batch()
    counted = labels != IGNORE
    loss = loss_of(logits, labels, counted.sum())
    assert torch.allclose(loss, cross_entropy(logits[counted], labels[counted]))


def test_shares_of_micro_batches_add_up_to_the_mean_of_the_whole():
    logits, labels = random_batch()
    num_tokens = (labels != IGNORE).sum()
    parts = [loss_of(logits[i : i + 1], labels[i : i + 1], num_tokens) for i in range(B)]
    assert torch.allclose(sum(parts), loss_of(logits, labels, num_tokens))


def test_ignored_labels_have_no_gradient():
    logits, labels = random_batch()
    logits.requires_grad_()
    loss_of(logits, labels, torch.tensor(16)).backward()
    assert torch.equal(logits.grad.abs().sum(-1) == 0, labels == IGNORE)


def test_a_micro_batch_without_labels_contributes_nothing():
    logits, labels = random_batch()
    assert loss_of(logits, torch.full_like(labels, IGNORE), torch.tensor(3)) == 0


def test_low_precision_logits_give_a_float32_loss():
    logits, labels = random_batch()
    loss = loss_of(logits.bfloat16(), labels, torch.tensor(16))
    assert loss.dtype == torch.float32
    assert torch.equal(loss, loss_of(logits.bfloat16().float(), labels, torch.tensor(16)))
