"""What a run will cost, before anything of it is started."""

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from megatron_gptx.config.schema import Config
from megatron_gptx.costs.cpu_activations import cpu_activation_memory
from megatron_gptx.costs.flops import (
    executed_flops_per_token,
    forward_flops_per_token,
    layer_flops,
    training_flops_per_token,
)
from megatron_gptx.costs.memory import (
    activation_memory,
    boundary_bytes,
    effective_zero_stage,
    state_memory,
)
from megatron_gptx.costs.parameters import layer_parameters
from megatron_gptx.costs.stages import boundaries

# The columns of a stage's memory.
MEMORY = {
    "weights": "weight_bytes",
    "gradients": "gradient_bytes",
    "optimizer": "optimizer_bytes",
    "activations": "activation_bytes",
    "step": "optimizer_step_bytes",
    "peak": "peak_bytes",
    "host": "host_bytes",
}
NOTES = (
    "peak = weights + gradients + optimizer + the larger of activations and the optimizer's step.",
    "The device's own context and DeepSpeed's communication buckets come on top.",
)


@dataclass(frozen=True)
class StagePlan:
    """One stage: the layers [first_layer, stop_layer), and the bytes on each of its processes.

    `parameters` counts a tied matrix at its first layer only; the bytes count every copy of it.
    """

    stage: int
    first_layer: int
    stop_layer: int
    parameters: int
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    optimizer_step_bytes: int
    peak_bytes: int
    host_bytes: int
    micro_batches_in_flight: int
    training_flops_per_token: int


@dataclass(frozen=True)
class Plan:
    """The costs of a run; FLOPs are explained in costs/flops.py, bytes in costs/memory.py.

    `boundary_bytes` has one entry per pair of neighbouring stages: what a micro-batch sends
    forward, and its gradient back. `executed_flops_per_token` includes recomputed activations.
    """

    parameters: int
    layers: int
    stages: tuple[StagePlan, ...]
    boundary_bytes: tuple[int, ...]
    precision: str
    zero_stage: int
    data_replicas: int
    world_size: int
    global_batch_size: int
    micro_batch_size: int
    accumulation_steps: int
    tokens_per_step: int
    forward_flops_per_token: int
    training_flops_per_token: int
    executed_flops_per_token: int

    def as_dict(self) -> dict[str, Any]:
        """Return every number as an exact integer, ready for JSON."""
        return asdict(self)

    def table(self) -> str:
        """Return the plan as text for a terminal."""
        return "\n".join([*self._summary(), "", *self._stage_rows(), "", *NOTES])

    def _summary(self) -> list[str]:
        replicas = _count(self.data_replicas, "replica")
        processes = _count(self.world_size, "process")
        step_flops = self.training_flops_per_token * self.tokens_per_step
        recomputed = self.executed_flops_per_token - self.training_flops_per_token
        again = f" (and {_scaled(recomputed)}FLOPs of recomputation)" if recomputed else ""
        facts = {
            "model": f"{self.parameters:,} parameters in {self.layers} layers",
            "layout": f"{_count(len(self.stages), 'stage')} x {replicas} = {processes}, "
            f"ZeRO-{self.zero_stage}, {self.precision}",
            "step": f"{self.tokens_per_step:,} tokens in {self.global_batch_size:,} sequences = "
            f"{self.micro_batch_size} per micro-batch x {self.accumulation_steps} accumulated x "
            f"{replicas}",
            "compute": f"{_scaled(self.training_flops_per_token)}FLOPs per token{again}, "
            f"{_scaled(step_flops)}FLOPs per step",
        }
        return [f"{name:<9}{fact}" for name, fact in facts.items()]

    def _stage_rows(self) -> list[str]:
        """Return one aligned line per stage; all bytes on a process share one unit."""
        unit, size = _unit(max(stage.peak_bytes for stage in self.stages))
        shown = [name for name in MEMORY if name != "host" or self._offloads]
        work = sum(stage.training_flops_per_token for stage in self.stages)
        rows = [["stage", "layers", "parameters", "work", *shown, "to next"]]
        for stage, sent in zip(self.stages, (*self.boundary_bytes, None), strict=True):
            memory = [getattr(stage, MEMORY[name]) / size for name in shown]
            rows.append(
                [
                    str(stage.stage),
                    f"{stage.first_layer}-{stage.stop_layer - 1}",
                    f"{stage.parameters:,}",
                    f"{stage.training_flops_per_token / work:.1%}",
                    *(f"{amount:.2f}" for amount in memory),
                    "-" if sent is None else _bytes(sent),
                ]
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            for row in rows
        ]
        left, span = (
            sum(part) + 2 * len(part) for part in (widths[:4], widths[4 : 4 + len(shown)])
        )
        banner = f" {unit} on each process ".center(span - 2, "-")
        return [" " * left + banner, *lines]

    @property
    def _offloads(self) -> bool:
        return any(stage.host_bytes for stage in self.stages)


def make_plan(config: Config, *, device: str | None = None) -> Plan:
    """Return what `config` costs; an undecided number of replicas counts as one.

    Args:
        config: the run.
        device: `cpu` or `cuda`, where known; None takes `launch.device`, whose `auto` counts as a
            GPU.

    Raises:
        UserError: the layers cannot form the configured stages.
    """
    model, batch = config.model, config.batch
    device = device or config.launch.device
    edges = boundaries(config)
    replicas = config.parallel.data_replicas or 1
    recompute = config.training.checkpoint_activations
    return Plan(
        parameters=sum(layer_parameters(model)),
        layers=model.num_pipeline_layers,
        stages=tuple(
            _stage_plan(config, stage, first, stop, device)
            for stage, (first, stop) in enumerate(pairwise(edges))
        ),
        boundary_bytes=tuple(boundary_bytes(config, edge) for edge in edges[1:-1]),
        precision=config.precision,
        zero_stage=effective_zero_stage(config),
        data_replicas=replicas,
        world_size=replicas * config.parallel.pipeline_stages,
        global_batch_size=batch.global_size,
        micro_batch_size=batch.micro_size,
        accumulation_steps=batch.accumulation_steps,
        tokens_per_step=batch.global_size * model.seq_length,
        forward_flops_per_token=round(forward_flops_per_token(model)),
        training_flops_per_token=round(training_flops_per_token(model)),
        executed_flops_per_token=round(executed_flops_per_token(model, recompute)),
    )


def _stage_plan(config: Config, stage: int, first: int, stop: int, device: str) -> StagePlan:
    state = state_memory(config, first, stop)
    planned = cpu_activation_memory if device == "cpu" else activation_memory
    activations = planned(config, first, stop, stage)
    flops = sum(layer_flops(config.model)[first:stop])
    lasting = state.weights + state.gradients + state.optimizer
    return StagePlan(
        stage=stage,
        first_layer=first,
        stop_layer=stop,
        parameters=sum(layer_parameters(config.model)[first:stop]),
        weight_bytes=state.weights,
        gradient_bytes=state.gradients,
        optimizer_bytes=state.optimizer,
        activation_bytes=activations.total,
        optimizer_step_bytes=state.step,
        # Activations are gone when the optimizer steps.
        peak_bytes=lasting + max(activations.total, state.step),
        host_bytes=state.host,
        micro_batches_in_flight=activations.in_flight,
        training_flops_per_token=round(3 * flops / config.model.seq_length),
    )


def _count(number: int, noun: str) -> str:
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{number:,} {noun if number == 1 else plural}"


def _unit(largest: int) -> tuple[str, int]:
    """Return the binary unit that suits numbers up to `largest`, and its bytes."""
    units = (("KiB", 2**10), ("MiB", 2**20), ("GiB", 2**30), ("TiB", 2**40))
    return max((size, name) for name, size in units if size <= max(largest, 2**10))[::-1]


def _bytes(number: int) -> str:
    unit, size = _unit(number)
    return f"{number / size:.2f} {unit}"


def _scaled(number: float) -> str:
    """Return three digits or more and a decimal prefix that a unit can follow: 6.43 G."""
    prefix = ""
    for larger in ("k", "M", "G", "T", "P", "E"):
        if number < 1000:
            break
        number, prefix = number / 1000, larger
    return f"{number:.{_decimals(number)}f} {prefix}"


def _decimals(number: float) -> int:
    return max(0, 3 - len(str(int(number))))
