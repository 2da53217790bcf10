"""Running consecutive layers: what a pipeline stage and a plain sequence have in common."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from megatron_gptx.config.model import ModelConfig
from megatron_gptx.distributed.seeds import derive_seed


class LayerRunner:
    """Some consecutive entries of the layer list, run in order.

    Dropout draws from a stream of its own per (step, micro-batch, replica, layer), so that a run
    drops the same elements in every layout, in a recomputed forward, and after a resume.
    """

    def __init__(
        self,
        config: ModelConfig,
        layers: Iterable[nn.Module],
        *,
        first: int,
        seed: int,
        checkpoint_group: int = 0,
    ) -> None:
        """Take the layers [first, first + len(layers)) of the layer list.

        Args:
            config: the model that the layers belong to.
            layers: the built layers.
            first: position of the first one in the layer list.
            seed: seed of the dropout streams.
            checkpoint_group: blocks whose activations are recomputed together; 0 keeps all.
        """
        self.layers = list(layers)
        self.first = first
        self.seed = seed
        self.random = config.dropout > 0 or config.attention.dropout > 0
        self.groups = _groups(first, len(self.layers), config.num_layers, checkpoint_group)
        self.step = self.replica = self.micro_batch = 0

    def begin_step(self, step: int, replica: int) -> None:
        """Name the step that the next forward passes belong to; counts micro-batches from 0."""
        self.step, self.replica, self.micro_batch = step, replica, 0

    def run(
        self,
        x: Tensor,
        prev_scores: Tensor | None,
        row_start: Tensor | None = None,
        *,
        training: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Map the first layer's input to the last layer's output.

        `row_start` (b, s) int32 is the first token that each one sees; None for the first of all.
        """
        micro_batch = self.micro_batch
        if training:
            self.micro_batch += 1
        for start, stop, recompute in self.groups:
            if recompute and training:
                x, prev_scores = checkpoint(
                    self._run_recomputed,
                    *(x, prev_scores, row_start, start, stop, micro_batch),
                    use_reentrant=False,
                    preserve_rng_state=False,  # every layer seeds its own stream
                )
            else:
                x, prev_scores = self._run_range(
                    x, prev_scores, row_start, start, stop, micro_batch if training else None
                )
        return x, prev_scores

    def _run_recomputed(
        self,
        x: Tensor,
        prev_scores: Tensor | None,
        row_start: Tensor | None,
        start: int,
        stop: int,
        micro_batch: int,
    ) -> tuple[Tensor, Tensor | None]:
        # Layers add to the scores where they lie; the second pass needs those that the first found.
        if prev_scores is not None:
            prev_scores = prev_scores.clone()
        return self._run_range(x, prev_scores, row_start, start, stop, micro_batch)

    def _run_range(
        self,
        x: Tensor,
        prev_scores: Tensor | None,
        row_start: Tensor | None,
        start: int,
        stop: int,
        micro_batch: int | None,
    ) -> tuple[Tensor, Tensor | None]:
        for position in range(start, stop):
            if self.random and micro_batch is not None:
                place = (self.step, micro_batch, self.replica, self.first + position)
                torch.manual_seed(derive_seed(self.seed, "dropout", *place))
            # What one layer hands on is what the next one receives.
            x, prev_scores = self.layers[position](x, prev_scores, row_start)
        return x, prev_scores


def _groups(first: int, num_local: int, num_blocks: int, group: int) -> list[tuple[int, int, bool]]:
    """Return (start, stop, recompute) ranges of local positions; only blocks are recomputed."""
    if group == 0:
        return [(0, num_local, False)]
    # Blocks are entries 1 ... num_blocks of the layer list.
    start, stop = max(1 - first, 0), min(num_blocks + 1 - first, num_local)
    ranges = [(0, start, False)] if start else []
    ranges += [(at, min(at + group, stop), True) for at in range(start, stop, group)]
    return ranges + ([(max(start, stop), num_local, False)] if stop < num_local else [])
