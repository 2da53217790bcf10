"""Packed documents are alone: nothing of another one reaches a document, nor its gradient."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from megatron_gptx.config.batch import IGNORE
from megatron_gptx.model.layer_runner import LayerRunner
from megatron_gptx.model.pipeline import pack, unpack

# Three documents in each of two sequences of 10 tokens.
BEGINS = [[0, 3, 7], [0, 1, 6]]
MODELS = {
    "plain": {"residual": "pre_norm", "position": "learned"},
    "top k": {"attention": {"top_k": 2}},
    "RealFormer": {"attention": {"residual_scores": True}},
    "all ideas": {"macaron": True, "attention": {"top_k": 2, "residual_scores": True}},
    "post norm": {"residual": "post_norm", "attention": {"top_k": 3, "residual_scores": True}},
}


def document_starts() -> Tensor:
    """Return (b, s) int32, the first token of each one's document."""
    rows = torch.zeros(2, 10, dtype=torch.int32)
    for row, begins in zip(rows, BEGINS, strict=True):
        for begin in begins:
            row[begin:] = begin
    return rows


def run_in_stages(
    config, layers: list[nn.Module], tokens: Tensor, row_start: Tensor | None, *, stages: int
) -> tuple[Tensor, Tensor]:
    """Return the embedded tokens and the logits, with a pipeline's boundary between stages."""
    x, scores = layers[0](tokens, None, row_start)
    embedded = x.detach().requires_grad_()
    x = embedded
    edges = [1, *(2 + i for i in range(stages - 1)), len(layers)]
    for first, last in pairwise(edges):
        runner = LayerRunner(config, layers[first:last], first=first, seed=0)
        x, scores = runner.run(x, scores, row_start, training=True)
        if scores is not None:
            x, scores = unpack(pack(x, scores), 12, 3, x.dtype)
    return embedded, x


def gradient_of(embedded: Tensor, logits: Tensor, counted: Tensor) -> Tensor:
    """Return the gradient of the loss at the counted labels for (b, s, m) embedded tokens."""
    labels = torch.full(counted.shape, IGNORE).masked_fill(counted, 5)
    loss = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE)
    return torch.autograd.grad(loss, embedded, retain_graph=True)[0]


@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("model", MODELS)
def test_no_gradient_of_a_documents_loss_reaches_another_document(
    make_config, make_layers, tokens, model, stages
):
    options = MODELS[model]
    row_start = document_starts()
    embedded, logits = run_in_stages(
        make_config(**options), make_layers(**options), tokens, row_start, stages=stages
    )
    for row, begins in enumerate(BEGINS):
        for begin in begins:
            counted = torch.zeros_like(tokens, dtype=torch.bool)
            counted[row] = row_start[row] == begin
            reached = gradient_of(embedded, logits, counted).abs().amax(-1) > 0
            # Every token of the document counts for its own label: none may be lost either.
            assert torch.equal(reached, counted)


@pytest.mark.parametrize("model", MODELS)
def test_without_boundaries_earlier_documents_are_reached(make_config, make_layers, tokens, model):
    options = MODELS[model]
    embedded, logits = run_in_stages(
        make_config(**options), make_layers(**options), tokens, None, stages=1
    )
    counted = torch.zeros_like(tokens, dtype=torch.bool)
    counted[0, 7:] = True
    assert gradient_of(embedded, logits, counted)[0, :7].abs().amax(-1).gt(0).any()


@pytest.mark.parametrize("position", ["alibi", "learned", "none"])
def test_a_packed_document_has_the_logits_that_it_has_alone(
    make_config, make_layers, tokens, position
):
    options = {"position": position, "attention": {"top_k": 2, "residual_scores": True}}
    config, layers = make_config(**options), [x.double() for x in make_layers(**options)]
    _, packed = run_in_stages(config, layers, tokens, document_starts(), stages=1)
    _, alone = run_in_stages(config, layers, tokens[:1, 3:7], None, stages=1)
    # Float64, where other shapes may add up in another order.
    assert torch.allclose(packed[0, 3:7], alone[0], rtol=1e-12, atol=1e-12)


def test_recomputed_layers_see_the_same_boundaries(make_config, make_layers, tokens):
    options = MODELS["all ideas"]
    config, layers = make_config(**options), make_layers(**options)

    def gradients(checkpoint_group: int) -> list[Tensor]:
        runner = LayerRunner(config, layers, first=0, seed=0, checkpoint_group=checkpoint_group)
        logits, _ = runner.run(tokens, None, document_starts(), training=True)
        parameters = [p for layer in layers for p in layer.parameters()]
        return list(torch.autograd.grad(logits.square().sum(), parameters))

    for kept, recomputed in zip(gradients(0), gradients(2), strict=True):
        assert torch.equal(kept, recomputed)
