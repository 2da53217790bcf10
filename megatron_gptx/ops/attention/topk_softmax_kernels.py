"""What PyTorch must know of the compiled top-k softmax: its shapes and its gradient.

The op returns, besides the probabilities, each row's kept keys and their weights before dropout:
that is all the backward pass needs.
"""

from typing import Any

import torch
from torch import Tensor

FORWARD, BACKWARD = "gptx::topk_softmax", "gptx::topk_softmax_backward"


def register() -> None:
    """Tell PyTorch; once, after the library that defines the ops has been loaded."""
    torch.library.register_fake(FORWARD, _forward_shapes)
    torch.library.register_fake(BACKWARD, _backward_shapes)
    torch.library.register_fake("gptx::topk_select_", _selected_shapes)
    torch.library.register_fake("gptx::sum_of_kept", _sum_shape)
    torch.library.register_fake("gptx::kept_gradients", _kept_gradients_shape)
    torch.library.register_fake("gptx::add_kept_", _nothing)
    torch.library.register_autograd(FORWARD, _backward, setup_context=_save)
    # Without a rule, PyTorch would take the gradient's own gradient for 0.
    torch.library.register_autograd(BACKWARD, _backward_twice)


def _backward_twice(ctx: Any, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    raise RuntimeError("top-k softmax can be differentiated once only")


def _forward_shapes(
    scores: Tensor,
    slopes: Tensor | None,
    top_k: int,
    row_start: Tensor | None,
    dropout_p: float,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:
    kept_shape = (*scores.shape[:3], min(top_k, scores.shape[3]))
    return (
        scores.new_empty(scores.shape),
        scores.new_empty(kept_shape, dtype=torch.int32),
        scores.new_empty(kept_shape, dtype=torch.float32),
    )


def _backward_shapes(
    grad_probs: Tensor, kept: Tensor, weights: Tensor, dropout_p: float, seed: int
) -> Tensor:
    return grad_probs.new_empty(grad_probs.shape)


def _selected_shapes(
    scores: Tensor, slopes: Tensor | None, top_k: int, row_start: Tensor | None, clear_unseen: bool
) -> tuple[Tensor, Tensor]:
    kept_shape = (*scores.shape[:3], min(top_k, scores.shape[3]))
    return (
        scores.new_empty(kept_shape, dtype=torch.int32),
        scores.new_empty(kept_shape, dtype=torch.float32),
    )


def _sum_shape(kept: Tensor, weights: Tensor, v: Tensor, dropout_p: float, seed: int) -> Tensor:
    b, h, s, _ = kept.shape
    return v.new_empty(b, s, h, v.shape[3]).transpose(1, 2)


def _kept_gradients_shape(
    grad_out: Tensor, v: Tensor, kept: Tensor, weights: Tensor, dropout_p: float, seed: int
) -> Tensor:
    return torch.empty_like(weights)


def _nothing(pairs: Tensor, kept: Tensor, grads: Tensor, row_start: Tensor | None) -> None:
    return None


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *_, ctx.dropout_p, ctx.seed = inputs
    _, kept, weights = output
    ctx.mark_non_differentiable(kept, weights)
    ctx.save_for_backward(kept, weights)


def _backward(ctx: Any, grad_probs: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    kept, weights = ctx.saved_tensors
    grad_scores = torch.ops.gptx.topk_softmax_backward(
        grad_probs, kept, weights, ctx.dropout_p, ctx.seed
    )
    return grad_scores, None, None, None, None, None
