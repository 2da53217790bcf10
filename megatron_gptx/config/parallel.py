"""How layers, batches and optimizer state spread over processes, and how those are started."""

import shlex
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from megatron_gptx.config.paths import GivenPath
from megatron_gptx.config.section import Check, Problem, Section


class ParallelConfig(Section):
    """The layout of one run."""

    pipeline_stages: int = Field(
        1, gt=0, description="Number of pipeline stages: consecutive groups of layers."
    )
    data_replicas: int | None = Field(
        None,
        gt=0,
        description="Data-parallel size: the number of copies of the pipeline. null takes as many "
        "as the devices allow (one on CPU).",
    )
    zero_stage: int = Field(
        1,
        ge=0,
        le=3,
        description="What replicas share instead of copying. 1: optimizer state. 2: gradients "
        "too. 3: weights too. 2 and 3 need one pipeline stage.",
    )
    boundaries: list[int] | None = Field(
        None,
        description="First layer of every stage except the first, such as [11]; null balances the "
        "stages.",
    )
    offload: Literal["none", "optimizer", "all"] = Field(
        "none",
        description="Move optimizer state (ZeRO 2 or 3), or weights too (ZeRO 3), to host memory.",
    )

    def checks(self) -> tuple[Check, ...]:
        """Return what looks for combinations that DeepSpeed cannot run, and for lost stages."""
        return self._zero_with_stages, self._offload, self._boundaries

    def _zero_with_stages(self) -> Iterator[Problem]:
        if self.zero_stage >= 2 and self.pipeline_stages > 1:
            yield Problem(
                "zero_stage",
                f"zero_stage {self.zero_stage} does not work with pipeline_stages "
                f"{self.pipeline_stages}; use zero_stage 0 or 1, or one stage",
            )

    def _offload(self) -> Iterator[Problem]:
        least = {"none": 0, "optimizer": 2, "all": 3}[self.offload]
        if self.zero_stage < least:
            yield Problem(
                "offload",
                f"offload {self.offload!r} needs zero_stage {least} or more, got {self.zero_stage}",
            )

    def _boundaries(self) -> Iterator[Problem]:
        if self.boundaries is not None and len(self.boundaries) != self.pipeline_stages - 1:
            yield Problem(
                "boundaries",
                f"boundaries {self.boundaries} make {len(self.boundaries) + 1} stages, but "
                f"pipeline_stages is {self.pipeline_stages}",
            )

    @property
    def sequential(self) -> bool:
        """Whether the layers run in DeepSpeed's plain engine instead of its pipeline engine."""
        return self.zero_stage >= 2


class LaunchConfig(Section):
    """Where and how the ranks are started."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="`auto` uses GPUs if there are enough, else the CPU."
    )
    hostfile: GivenPath | None = Field(
        None, description="DeepSpeed hostfile that lists several nodes (`name slots=N` lines)."
    )
    launcher: Literal["pdsh", "openmpi", "mpich", "impi", "mvapich", "slurm"] = Field(
        "pdsh", description="Program with which DeepSpeed starts remote processes."
    )
    launcher_args: str = Field("", description="Arguments for that launcher.")
    master_addr: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]*$",
        description="Address of rank 0's node; null takes the first host of the hostfile.",
    )
    master_port: int | None = Field(
        None, gt=0, lt=65536, description="Rendezvous port; null finds a free one."
    )
    max_restarts: int = Field(
        0,
        ge=0,
        description="How often ranks that crashed or hung are started again, from the newest "
        "intact checkpoint.",
    )
    timeout_seconds: int = Field(
        1800,
        gt=0,
        le=10_000_000,
        description="How long a step, a save, a load or the evaluation of a batch may last. After "
        "that the run ends and names the rank that blocks the others.",
    )

    def checks(self) -> tuple[Check, ...]:
        """Return what looks for arguments that are no words."""
        return (self._arguments,)

    def _arguments(self) -> Iterator[Problem]:
        try:
            shlex.split(self.launcher_args)
        except ValueError as error:
            yield Problem("launcher_args", f"cannot be split into words: {error}")
