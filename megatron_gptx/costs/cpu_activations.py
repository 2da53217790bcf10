"""The activations of one stage on a CPU, in bytes: what the kernels keep there, or plain PyTorch.

The peak comes at one of a few moments, which are added up here one by one. A forward pass may reach
it while the last block attends, while the stage hands on, or in the loss; a backward pass in the
loss, or in a branch of a late block. costs/memory.py has the simpler rule for GPUs.
"""

from typing import NamedTuple

from megatron_gptx.config.model import ModelConfig
from megatron_gptx.config.schema import Config
from megatron_gptx.costs.memory import (
    FLOAT,
    ActivationMemory,
    boundary_bytes,
    compute_bytes,
    in_flight,
    prev_scores_bytes,
)

# Logits that the fused loss makes at once: ops/linear_cross_entropy.py, BLOCK.
LOGITS_AT_ONCE = 512 * 1024

# Bytes per weight while plain PyTorch draws dropout: seven int64 (ops/attention/dropout.py).
DRAWING = 7 * 8


class _Part(NamedTuple):
    """A part of a layer: what it keeps, and what each of its passes adds for the moment."""

    kept: int
    forward: int
    backward: int


def cpu_activation_memory(config: Config, first: int, stop: int, stage: int) -> ActivationMemory:
    """Return the bytes of activations at stage `stage`, which has the layers [first, stop).

    What DeepSpeed receives into belongs to no micro-batch and counts as `working`.
    """
    return _Stage(config, first, stop).memory(in_flight(config, stage))


class _Stage:
    """The layers [first, stop) and one micro-batch that passes through them."""

    def __init__(self, config: Config, first: int, stop: int) -> None:
        model, num_layers = config.model, config.model.num_pipeline_layers
        self.config = config
        self.blocks = range(max(first, 1), min(stop, model.num_layers + 1))
        self.received = boundary_bytes(config, first) if first > 0 else 0
        self.sent = boundary_bytes(config, stop) if stop < num_layers else 0
        self.is_last = stop == num_layers
        self.scores = prev_scores_bytes(config, model.num_layers)
        # DeepSpeed's copy of what came lives as long as the forward pass, and the scores with it.
        self.copied = self.received if prev_scores_bytes(config, first) else 0
        self.hands_on = prev_scores_bytes(config, stop) > 0
        self.attention, self.feedforward = _attention(config), _feedforward(config)
        self.block = self.attention.kept + (2 if model.macaron else 1) * self.feedforward.kept
        self.head = _head(config) if self.is_last else _Part(0, 0, 0)
        self.embeds = first == 0

    def memory(self, num_in_flight: int) -> ActivationMemory:
        """Return the bytes between the two passes."""
        group = self.config.training.checkpoint_activations
        if group:
            of_blocks = sum(self._input(at) for at in self.blocks[::group])
            moments = self._recomputing(group)
        else:
            of_blocks = len(self.blocks) * self.block
            moments = [*self._attending(), *self._returning()]
        kept = self.received + self.sent + of_blocks + self.head.kept
        kept += _mask(self.config) if self.embeds else 0
        moments += [self.copied + self.head.forward, self.head.backward]
        if self.hands_on:
            moments.append(self.copied + self._scores_apart())
        if self.is_last:
            # The micro-batch before, and its gradient, go when the next one begins, which DeepSpeed
            # has received and copied by then.
            moments.append(4 * self.received - kept)
        if self.embeds:
            # A new gradient of the whole table, when nothing else of a micro-batch is left.
            table = self.config.model.vocab_size * self.config.model.hidden_size * FLOAT
            moments.append(table + _stream(self.config) - kept)
        return ActivationMemory(kept, num_in_flight, max(moments) + self._buffers())

    def _buffers(self) -> int:
        """Return what DeepSpeed receives into: one place for both directions if it suffices."""
        return self.received + (self.sent if self.sent > self.received else 0)

    def _input(self, at: int) -> int:
        """Return what recomputation keeps of the layers that begin with block `at`."""
        if at == self.blocks[0] and self.copied:
            return self.received
        return _stream(self.config) + prev_scores_bytes(self.config, at)

    def _scores_apart(self) -> int:
        """Return the scores that this stage made beside those that it received."""
        in_place = self.copied and _selects_fused(self.config)
        return 0 if in_place else self.scores

    def _attending(self) -> list[int]:
        """Return the moments of attention's forward pass, less what is kept in the end.

        The last block of all returns no scores, so that the one before it may need more.
        """
        if not self.blocks:
            return []
        behind = self.head.kept + self.sent + self.feedforward.kept
        moments = []
        for back, at in enumerate(reversed(self.blocks[-2:])):
            before = self.scores if at > self.blocks[0] else 0
            moments.append(self._attending_at(at, before) - behind - back * self.block)
        return moments

    def _attending_at(self, at: int, before: int) -> int:
        """Return what block `at` needs while it attends; `before` are the scores made before it."""
        if _selects_fused(self.config):
            return self.copied + (0 if self.copied else self.scores)
        returned = prev_scores_bytes(self.config, at + 1) if _selects(self.config) else 0
        return self.copied + before + returned + self.attention.forward

    def _returning(self) -> list[int]:
        """Return the moments of the backward pass through the last blocks, less what is kept."""
        if not self.blocks:
            return []
        loss, branch, last = self.head.kept, self.feedforward.kept, self.blocks[-1]
        gradient = self._gradient(last)
        moments = [
            self.feedforward.backward - loss,
            self._attention_backward(last) - loss - branch,
        ]
        if self.config.model.macaron:
            behind = loss + branch + self.attention.kept
            moments.append(self.feedforward.backward + gradient - behind)
        if len(self.blocks) > 1:
            # The kernels turn the gradient that has come into the one that goes.
            own = 0 if _selects_fused(self.config) else self._gradient(last - 1)
            behind = loss + self.block
            moments += [
                self.feedforward.backward + gradient - behind,
                self.attention.backward + gradient + own - behind - branch,
            ]
        return moments

    def _attention_backward(self, at: int) -> int:
        return self.attention.backward + (self._gradient(at) if _selects_fused(self.config) else 0)

    def _gradient(self, at: int) -> int:
        """Return what the gradient of the scores that enter block `at` takes.

        The kernels leave it where its successor's lies, which may be the buffer that received it.
        """
        received = self.hands_on and _selects_fused(self.config)
        return 0 if received else prev_scores_bytes(self.config, at)

    def _recomputing(self, group: int) -> list[int]:
        """Return the moments in which a group of blocks runs again and then backward."""
        if not self.blocks:
            return []
        starts = list(self.blocks[::group])
        moments = []
        # Of the groups behind a recomputed one, the inputs are gone and a gradient has come.
        gone = self.head.kept
        for number, start in enumerate(reversed(starts[-2:])):
            count = min(group, self.blocks[-1] + 1 - start)
            incoming = (
                self.scores if number and prev_scores_bytes(self.config, start + count) else 0
            )
            again = count * self.block + incoming - gone
            copy = prev_scores_bytes(self.config, start)
            last = start + count - 1
            returned = prev_scores_bytes(self.config, last + 1) > 0
            if _selects_fused(self.config):
                making = copy or (self.scores if returned or count > 1 else 0)
            else:
                making = copy + self.attention.forward
                making += self.scores if returned and _selects(self.config) else 0
                making += self.scores if count > 1 else 0
            moments += [
                again - self.feedforward.kept + making,
                again + self.feedforward.backward,
                again - self.feedforward.kept + self._attention_backward(last),
            ]
            gone += self._input(start)
        return moments


def _attention(config: Config) -> _Part:
    """Return what attention keeps, with its branch, and what it needs beside the scores."""
    model, rows = config.model, config.batch.micro_size
    stream, widened = _stream(config), _stream(config, FLOAT)
    queries = rows * model.num_heads * model.seq_length
    pairs, square = queries * model.seq_length * FLOAT, model.seq_length**2
    kept = _joined(config) + 4 * stream
    weights = 3 * model.hidden_size**2 * FLOAT
    # The gradient of the stream, and those of q, k and v, apart and then joined.
    backward = 2 * stream + 3 * widened + 3 * stream + weights
    top_k = min(model.attention.top_k or model.seq_length, model.seq_length)
    if _selects_fused(config):
        # A weight in float32 and an int32 position for each key that a query keeps.
        return _Part(kept + queries * top_k * (FLOAT + 4), 0, backward)
    if _selects(config):
        # Positions are int64, one more than are kept.
        kept += queries * (top_k * FLOAT + (top_k + 1) * 8)
        forward = pairs + square * (FLOAT + 1)
        if model.attention.dropout:
            forward += DRAWING * queries * top_k
        return _Part(kept, forward, backward - 2 * stream + pairs)
    width, dropout = compute_bytes(config.precision), model.attention.dropout > 0
    if not model.attention.residual_scores and not dropout:
        # PyTorch's fused attention takes ALiBi's bias as a matrix per head.
        penalties = model.num_heads * square if model.position == "alibi" else 0
        return _Part(kept + penalties * width, 2 * penalties * FLOAT, backward)
    # Weights in the type that multiplies v; in float32 before they drop or are rounded.
    softmax = pairs if dropout or width != FLOAT else 0
    kept += 2 * (widened - stream) + pairs * width // FLOAT + softmax + (pairs if dropout else 0)
    draws = dropout and (model.attention.residual_scores or model.attention.top_k is not None)
    forward = 2 * pairs + max(pairs, DRAWING * pairs // FLOAT if draws else 0) + square * FLOAT
    return _Part(kept, forward, backward - 3 * stream + 2 * pairs)


def _feedforward(config: Config) -> _Part:
    model, width = config.model, compute_bytes(config.precision)
    numbers = config.batch.micro_size * model.seq_length * model.ffn_width
    inner, stream = numbers * width, _stream(config)
    num_kept, num_gradients = {"relu": (1, 2), "gelu": (2, 1), "swiglu": (4, 2)}[model.activation]
    kept = num_kept * inner
    if _fused(config) and model.activation == "gelu":
        kept = numbers * FLOAT + inner  # before GELU always in float32
    new_weights = model.hidden_size * model.ffn_width * FLOAT
    return _Part(_joined(config) + kept, 0, 3 * stream + num_gradients * inner + new_weights)


def _joined(config: Config) -> int:
    """Return what a branch keeps to be joined: its input, and what the gate or LayerNorm saw."""
    return 2 * _stream(config) + _mask(config)


def _mask(config: Config) -> int:
    """Return what a dropout keeps: factors in the type of what it drops from."""
    return _stream(config) if config.model.dropout else 0


def _head(config: Config) -> _Part:
    """Return final norm, head and loss."""
    model, width = config.model, compute_bytes(config.precision)
    rows = config.batch.micro_size * model.seq_length
    weights, widened = model.vocab_size * model.hidden_size * FLOAT, _stream(config, FLOAT)
    inputs = (2 if model.final_norm else 1) * _stream(config)
    logits = rows * model.vocab_size * FLOAT
    if not _fused(config):
        narrow = 0 if width == FLOAT else rows * model.vocab_size * width
        gradients = logits + max(logits, weights * width // FLOAT + _stream(config))
        return _Part(inputs + logits, logits + narrow, gradients)
    # Gradients are made in the forward pass, and multiplied by the loss's own in the backward pass.
    at_once = min(max(LOGITS_AT_ONCE // model.vocab_size, 16), rows)
    block = at_once * (model.vocab_size + model.hidden_size) * FLOAT
    copies = 0 if width == FLOAT else widened + weights
    return _Part(inputs + widened + weights, copies + block, widened + weights)


def _stream(config: Config, width: int | None = None) -> int:
    model, rows = config.model, config.batch.micro_size
    return rows * model.seq_length * model.hidden_size * (width or compute_bytes(config.precision))


def _fused(config: Config) -> bool:
    """Return whether projections and loss run on kernels: `auto` takes them on every CPU."""
    return config.ops.backend != "reference"


def _selects_fused(config: Config) -> bool:
    return _fused(config) and config.model.attention.top_k is not None


def _selects(config: Config) -> bool:
    """Return whether a query keeps fewer keys than there are."""
    return _keeps(config.model) < config.model.seq_length


def _keeps(model: ModelConfig) -> int:
    return min(model.attention.top_k or model.seq_length, model.seq_length)
