"""Which rank makes the others wait: what each one takes for itself, compared now and then."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from megatron_gptx.distributed.fault_injection import fault_point

# Steps between comparisons, how much slower than the median is worth a word, and what part of the
# time it must cost.
INTERVAL, RATIO, SHARE = 50, 1.5, 0.05
PHASES = ("data", "forward")


class Stragglers:
    """Adds up the seconds of the phases in which a rank waits for no other.

    Steps last equally long on all ranks, since each waits for the slowest. Waiting for data and the
    forward passes of a rank's own layers do not; the backward passes are left out, for their time
    holds exchanges between ranks. On a GPU, events in its stream take the time.
    """

    def __init__(self, module: Any, device: torch.device, *, alone: bool) -> None:
        """Measure the forward passes of a module.

        Args:
            module: this rank's layers.
            device: where they run, and where gathered seconds lie.
            alone: whether they run without other ranks, unlike those that ZeRO-3 has scattered.
        """
        self.device = device
        self.data_seconds = 0.0
        self.pending: list[Any] = []
        self.started_at = time.perf_counter()
        self.said: set[tuple[int, str]] = set()
        if alone:
            module.register_forward_pre_hook(self._before)
            module.register_forward_hook(self._after)

    def wait(self, seconds: float) -> None:
        """Note how long a step waited for its data."""
        self.data_seconds += seconds

    def compare(self, step: int, say: Callable[[str], None]) -> None:
        """Say which rank is slow, once for each; every rank calls this after every step."""
        if step % INTERVAL:
            return
        own = [self.data_seconds, self._forward_seconds()]
        mine = torch.tensor(own, dtype=torch.float64, device=self.device)
        every = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(every, mine)
        now = time.perf_counter()
        lasted, self.started_at = now - self.started_at, now
        self.data_seconds = 0.0
        for phase, column in zip(PHASES, torch.stack(every).T.tolist(), strict=True):
            slowest, median = max(column), statistics.median_low(column)
            rank = column.index(slowest)
            lost = slowest - median
            if (
                slowest > RATIO * median
                and lost > SHARE * lasted
                and (rank, phase) not in self.said
            ):
                self.said.add((rank, phase))
                say(
                    f"slowest: rank {rank}, {phase} {slowest / max(median, 1e-3):.1f} times the "
                    f"median over {INTERVAL} steps ({slowest:.1f} s of {lasted:.1f} s)"
                )

    def _before(self, module: Any, inputs: Any) -> None:
        if module.training:
            self.pending.append([self._clock()])
            fault_point("forward")

    def _after(self, module: Any, inputs: Any, output: Any) -> None:
        if module.training:
            self.pending[-1].append(self._clock())

    def _clock(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _forward_seconds(self) -> float:
        """Return the seconds of the forward passes since the last call."""
        pairs, self.pending = self.pending, []
        if self.device.type != "cuda":
            return sum(end - begin for begin, end in pairs)
        torch.cuda.synchronize()
        return sum(begin.elapsed_time(end) for begin, end in pairs) / 1000
