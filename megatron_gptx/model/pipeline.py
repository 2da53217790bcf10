"""The layer list as a DeepSpeed pipeline: this rank builds and runs the layers of its stage."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec
from deepspeed.runtime.pipe.topology import PipeDataParallelTopology
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

from megatron_gptx.config.model import ModelConfig
from megatron_gptx.model.head import Target, TiedHead, project
from megatron_gptx.model.layer_list import TIED_PARAMETER, build_layer, layer_list
from megatron_gptx.model.layer_runner import LayerRunner


class _Spec(LayerSpec):
    """A layer that is built on the stage that owns it, from its own seed."""

    def __init__(self, config: ModelConfig, index: int, seed: int) -> None:
        super().__init__(nn.Module)
        self.place = (config, index, seed)

    def build(self, log: bool = False) -> nn.Module:
        return build_layer(*self.place)


class _TiedSpec(TiedLayerSpec):
    """A layer whose token table another stage shares: DeepSpeed keeps the copies equal."""

    def __init__(self, config: ModelConfig, index: int, seed: int, key: str) -> None:
        # The same function for a stage that holds both layers, where only the embedding is built.
        super().__init__(
            key,
            nn.Module,
            forward_fn=project if index > 0 else None,
            tied_weight_attr=TIED_PARAMETER,
        )
        self.place = (config, index, seed)

    def build(self, log: bool = False) -> nn.Module:
        return build_layer(*self.place)


class GPTXPipeline(PipelineModule):
    """One stage of a GPT-X model.

    Between stages travels one tensor, since DeepSpeed would run backward once per tensor: the
    activations (b, s, m), followed in the last dimension by the scores where there are any. Where
    documents begin does not travel: every stage's process reads the same batch, so its engine says
    it with `begin_batch`.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        edges: Sequence[int],
        replicas: int,
        seed: int,
        checkpoint_group: int,
    ) -> None:
        """Build this rank's stage.

        Args:
            config: the model.
            edges: first layer of every stage, and the number of layers at the end.
            replicas: copies of the pipeline.
            seed: seed of weights and dropout.
            checkpoint_group: blocks whose activations are recomputed together; 0 keeps all.
        """
        self.edges = list(edges)
        self.hidden_size, self.num_heads = config.hidden_size, config.num_heads
        super().__init__(
            layers=_specs(config, seed),
            topology=PipeDataParallelTopology(num_pp=len(edges) - 1, num_dp=replicas),
        )
        self.stage_layers = list(self.forward_funcs)
        is_last = self._local_stop == config.num_pipeline_layers
        # The head waits for the labels, which DeepSpeed hands to the loss.
        self.loss_fn = self._loss if is_last else None
        self.runner = LayerRunner(
            config,
            self.stage_layers[:-1] if is_last else self.stage_layers,
            first=self._local_start,
            seed=seed,
            checkpoint_group=checkpoint_group,
        )
        self._row_starts: Iterator[Tensor | None] = itertools.repeat(None)
        self._results: list[Tensor] = []

    def begin_batch(self, row_starts: Iterable[Tensor | None]) -> None:
        """Take the (b, s) row_start of each micro-batch whose forward pass comes next, in order."""
        self._row_starts = iter(row_starts)

    def local_layers(self) -> dict[int, nn.Module]:
        """Return this stage's layers by position; a tied head owns nothing and is left out."""
        return {
            index: layer
            for index, layer in enumerate(self.stage_layers, start=self._local_start)
            if isinstance(layer, nn.Module) and not isinstance(layer, TiedHead)
        }

    def tied_copies(self) -> dict[tuple[int, str], nn.Parameter]:
        """Return this stage's copies of parameters that another stage owns, by (layer, name)."""
        head = next((m for m in self.tied_modules.values() if isinstance(m, TiedHead)), None)
        return {} if head is None else {(0, TIED_PARAMETER): head.get_parameter(TIED_PARAMETER)}

    def stage_group(self) -> ProcessGroup:
        """Return the processes that hold the stages of this replica."""
        return self._grid.get_pipe_parallel_group()

    def own_parameters(self) -> dict[int, list[nn.Parameter]]:
        """Return parameters by layer; over all stages, each parameter is there once."""
        return {index: list(layer.parameters()) for index, layer in self.local_layers().items()}

    def forward(self, inputs: Tensor) -> Tensor:
        """Map token ids or a packed boundary tensor to the next one, or to what the head reads."""
        # DeepSpeed keeps the last stage's results of earlier micro-batches, which are done. Their
        # graphs would keep what this stage received for them, and its gradient.
        for result in self._results:
            result.detach_()
        self._results.clear()
        if self.stage_id == 0:
            x, prev_scores = inputs, None
        else:
            dtype = next(self.parameters()).dtype
            x, prev_scores = unpack(inputs, self.hidden_size, self.num_heads, dtype)
        # Every schedule of DeepSpeed's runs forward passes in the order of the micro-batches.
        row_start = next(self._row_starts)
        x, scores = self.runner.run(x, prev_scores, row_start, training=self.training)
        if self.loss_fn is not None:
            self._results.append(x)
        return x if scores is None else pack(x, scores)

    def _loss(self, x: Tensor, target: Target) -> Tensor:
        loss, _ = self.stage_layers[-1](x, None, target=target)
        self._results.append(loss)
        return loss

    def _partition_layers(self, method: str = "uniform") -> None:
        # DeepSpeed's methods build every layer on every rank, or know nothing of their cost.
        self.parts = self.edges
        self._set_bounds(start=self.edges[self.stage_id], stop=self.edges[self.stage_id + 1])


def pack(x: Tensor, scores: Tensor) -> Tensor:
    """Join (b, s, m) activations and (b, h, s, t) scores to one tensor, (b, s, m + h * t).

    In the scores' dtype, which is the wider one: the boundary then loses nothing. Only the number
    of elements is that shape's: the scores lie in front, whole, so that nobody has to move them.
    """
    b, s, m = x.shape
    wide = x.to(scores.dtype)
    return torch.cat([scores.flatten(), wide.flatten()]).view(b, s, m + scores.numel() // (b * s))


def unpack(
    packed: Tensor, hidden_size: int, num_heads: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """Split what `pack` joined, the activations in `dtype`; without scores return None for them.

    The scores take the memory of `packed`, whose values are lost once a layer adds to them.
    """
    if packed.shape[-1] == hidden_size:
        return packed, None
    x, prev_scores = _Unpack.apply(packed, hidden_size, num_heads, dtype)
    return x, prev_scores


class _Unpack(torch.autograd.Function):
    """Two tensors out of one, which PyTorch's views could not be: a layer writes to the scores."""

    @staticmethod
    def forward(
        ctx: Any, packed: Tensor, hidden_size: int, num_heads: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        b, s, width = packed.shape
        flat = packed.flatten()
        prev_scores = flat[: b * s * (width - hidden_size)].view(b, num_heads, s, -1)
        x = flat[prev_scores.numel() :].view(b, s, hidden_size)
        # To PyTorch no view of `packed`: of two such, it lets nobody write to one.
        place = flat.storage_offset(), prev_scores.shape, prev_scores.stride()
        prev_scores = flat.new_empty(0).set_(flat.untyped_storage(), *place)
        # The first block keeps x for its backward pass; with a view, it would keep all.
        return x.to(dtype, copy=True), prev_scores

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_x: Tensor, grad_prev_scores: Tensor
    ) -> tuple[Tensor, None, None, None]:
        return pack(grad_x, grad_prev_scores), None, None, None


def _specs(config: ModelConfig, seed: int) -> list[LayerSpec]:
    return [
        _Spec(config, index, seed)
        if entry.tied_key is None
        else _TiedSpec(config, index, seed, entry.tied_key)
        for index, entry in enumerate(layer_list(config))
    ]
