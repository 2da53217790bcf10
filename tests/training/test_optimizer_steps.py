"""Lion and Muon, step by step in float64, against a few lines of plain PyTorch each."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from megatron_gptx.training.lion import Lion
from megatron_gptx.training.muon import Muon, orthogonalize

NUM_STEPS = 5
LR, DECAY = 0.03, 0.2
SHAPES = [(6, 4), (4, 6), (5, 5), (12, 4), (7,), (1,)]
# Float64 rounds at 1e-16; five steps of products with sums of twelve terms multiply that.
TOLERANCE = 1e-12


def parameters(shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.float64) -> list[Any]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape, dtype=torch.float64).to(dtype)) for shape in shapes]


def gradients(shapes: list[tuple[int, ...]]) -> list[list[Tensor]]:
    torch.manual_seed(1)
    return [[torch.randn(shape, dtype=torch.float64) for shape in shapes] for _ in range(NUM_STEPS)]


def run(optimizer: torch.optim.Optimizer, updated: list[Any], drawn: list[list[Tensor]]) -> None:
    for step in drawn:
        for parameter, gradient in zip(updated, step, strict=True):
            parameter.grad = gradient.to(parameter.dtype)
        optimizer.step()


def assert_close(found: list[Any], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.detach(), other, rtol=TOLERANCE, atol=TOLERANCE)


def group(updated: list[Any], *moments: str, decay: float = DECAY, **more: Any) -> dict[str, Any]:
    return {"params": updated, "weight_decay": decay, "moments": moments, **more}


def lion(weight: Tensor, drawn: list[Tensor], beta1: float, beta2: float, decay: float) -> Tensor:
    """Algorithm 2 of arXiv:2302.06675, line by line."""
    momentum = torch.zeros_like(weight)
    for gradient in drawn:
        update = (beta1 * momentum + (1 - beta1) * gradient).sign()
        weight = weight - LR * (update + decay * weight)
        momentum = beta2 * momentum + (1 - beta2) * gradient
    return weight


def test_lion_follows_its_paper():
    updated, drawn = parameters(SHAPES), gradients(SHAPES)
    begun = [p.detach().clone() for p in updated]
    groups = [
        group(updated[:3], "exp_avg"),
        group(updated[3:], "exp_avg", decay=0.0),
        group([], "exp_avg"),  # of a stage that holds nothing of the kind
    ]
    run(Lion(groups, lr=LR, betas=[0.8, 0.95]), updated, drawn)
    expected = [
        lion(weight, [step[at] for step in drawn], 0.8, 0.95, DECAY if at < 3 else 0.0)
        for at, weight in enumerate(begun)
    ]
    assert_close(updated, expected)


def muon(
    weight: Tensor, drawn: list[Tensor], momentum: float, nesterov: bool, steps: int, parts: int
) -> Tensor:
    """The algorithm of https://kellerjordan.github.io/posts/muon/, sized as in arXiv:2502.16982."""
    buffer = torch.zeros_like(weight)
    for gradient in drawn:
        buffer = momentum * buffer + gradient
        update = gradient + momentum * buffer if nesterov else buffer
        pieces = []
        for piece in update.chunk(parts):
            x = piece / piece.norm()
            for _ in range(steps):
                gram = x @ x.T
                x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
            pieces.append(0.2 * max(piece.shape) ** 0.5 * x)
        weight = weight - LR * (torch.cat(pieces) + DECAY * weight)
    return weight


@pytest.mark.parametrize(("nesterov", "steps"), [(True, 5), (False, 5), (True, 3)])
def test_muon_follows_its_papers_and_leaves_the_rest_to_adamw(nesterov, steps):
    matrices = [shape for shape in SHAPES if len(shape) == 2]
    counts = [1, 1, 1, 3]  # the last one is queries, keys and values
    updated, drawn = parameters(SHAPES), gradients(SHAPES)
    begun = [p.detach().clone() for p in updated]
    by_adamw = [nn.Parameter(p.detach().clone()) for p in updated[len(matrices) :]]
    groups = [
        group(updated[: len(matrices)], "momentum_buffer", num_matrices=counts),
        group(updated[len(matrices) :], "exp_avg", "exp_avg_sq"),
    ]
    options = {"momentum": 0.9, "nesterov": nesterov, "newton_schulz_steps": steps}
    run(Muon(groups, lr=LR, betas=[0.8, 0.9], eps=1e-6, **options), updated, drawn)
    expected = [
        muon(begun[at], [step[at] for step in drawn], 0.9, nesterov, steps, count)
        for at, count in enumerate(counts)
    ]
    assert_close(updated[: len(matrices)], expected)
    adamw = torch.optim.AdamW(by_adamw, lr=LR, betas=(0.8, 0.9), eps=1e-6, weight_decay=DECAY)
    run(adamw, by_adamw, [step[len(matrices) :] for step in drawn])
    assert_close(updated[len(matrices) :], [p.detach() for p in by_adamw])


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with torch 2.9")
def test_muon_is_pytorchs_but_for_its_bfloat16():
    shapes = [(8, 4), (4, 8)]
    ours, theirs = (parameters(shapes, torch.float32) for _ in range(2))
    drawn = gradients(shapes)
    options = {"momentum": 0.95, "nesterov": True, "newton_schulz_steps": 5}
    groups = [group(ours, "momentum_buffer", num_matrices=[1, 1]), group([], "exp_avg")]
    run(Muon(groups, lr=LR, betas=[0.9, 0.95], eps=1e-8, **options), ours, drawn)
    torch_muon = torch.optim.Muon(
        theirs, lr=LR, weight_decay=DECAY, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    run(torch_muon, theirs, drawn)
    # It orthogonalises in bfloat16, which rounds at 2^-8: of an update of 0.2 * sqrt(8) * LR at
    # most, for each of the steps.
    allowed = NUM_STEPS * 2**-8 * 0.2 * 8**0.5 * LR * 4
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).abs().max() < allowed


@pytest.mark.parametrize("shape", [(16, 16), (16, 48), (48, 16)])
def test_singular_values_come_close_to_one(shape):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(shape), steps=5))
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_nothing_becomes_of_a_gradient_of_zero():
    assert torch.equal(orthogonalize(torch.zeros(3, 4), steps=5), torch.zeros(3, 4))


@pytest.mark.parametrize("name", ["lion", "muon"])
def test_a_parameter_without_a_gradient_stays_with_its_state(name):
    updated = parameters([(4, 4), (3,)])
    moment = "exp_avg" if name == "lion" else "momentum_buffer"
    groups = [
        group(updated[:1], moment, num_matrices=[1]),
        group(updated[1:], *(["exp_avg"] if name == "lion" else ["exp_avg", "exp_avg_sq"])),
    ]
    if name == "lion":
        del groups[0]["num_matrices"]
        optimizer: torch.optim.Optimizer = Lion(groups, lr=LR, betas=[0.9, 0.99])
    else:
        options = {"momentum": 0.95, "nesterov": True, "newton_schulz_steps": 5}
        optimizer = Muon(groups, lr=LR, betas=[0.9, 0.95], eps=1e-8, **options)
    run(optimizer, updated, gradients([(4, 4), (3,)]))
    before = [p.detach().clone() for p in updated]
    kept = [optimizer.state[p][key].clone() for p in updated for key in optimizer.state[p]]
    for parameter in updated:
        parameter.grad = None
    optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(updated, before, strict=True))
    after = [optimizer.state[p][key] for p in updated for key in optimizer.state[p]]
    assert all(torch.equal(one, other) for one, other in zip(after, kept, strict=True))
    assert {int(optimizer.state[p]["step"]) for p in updated} == {NUM_STEPS}
