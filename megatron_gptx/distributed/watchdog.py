"""A thread in every rank that ends a run which no longer moves, and says which rank holds it up.

A rank that waits for a peer cannot know why. So every rank leaves a heartbeat in the run folder:
its phase, its step, and what it waits in. The first rank whose time is up reads those of all.
"""

import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NamedTuple, TextIO

from megatron_gptx.distributed.exit_status import HUNG
from megatron_gptx.distributed.run_files import first_to_fail
from megatron_gptx.files.write import write_aside

# Kernels may be built, and weights initialised, before the first step.
START_SECONDS = 1800
# How often the thread looks, as a part of the timeout, and at most.
TICKS, LONGEST_TICK = 20, 5.0
# What the thread is given before a rank that lets no thread run is ended without it.
SLACK_SECONDS = 5.0

# What the names of threads begin with that write checkpoints.
WRITER = "checkpoint"

_COLLECTIVES = "torch/distributed/distributed_c10d.py"
_OWN = "/megatron_gptx/"


class Beat(NamedTuple):
    """How far a rank is; `number` grows as long as it lives."""

    number: int
    phase: str
    step: int
    collective: str | None
    place: str
    host: str = ""


class Watchdog:
    """Ends this rank when a phase lasts too long, all threads' stacks in its log.

    The time in which the whole process is stopped does not count.
    """

    def __init__(self, rank: int, world_size: int, *, run_dir: Path, timeout_seconds: int) -> None:
        """Begin the phase `start`, which may last 1800 seconds, or `timeout_seconds` if more.

        Args:
            rank: this rank.
            world_size: how many there are.
            run_dir: the run's folder, which all ranks see.
            timeout_seconds: how long any later phase may last.
        """
        self.rank, self.world_size = rank, world_size
        self.logs = run_dir / "logs"
        self.timeout_seconds = timeout_seconds
        self.console: TextIO = sys.stdout
        self._main = threading.main_thread().ident
        self._phase, self._step, self._begun = "start", 0, 0
        self._ended = threading.Event()
        # A daemon: it must not keep a process that has ended otherwise.
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self, console: TextIO) -> None:
        """Watch from now on; the words of a timeout go to `console`."""
        self.console = console
        self._thread.start()

    def begin(self, phase: str, step: int) -> None:
        """Note that a phase begins, which ends the one before.

        Args:
            phase: a word for people, such as `save`.
            step: optimizer steps taken so far.
        """
        leaves_start = self._phase == "start" and self._thread.is_alive()
        self._phase, self._step = phase, step
        self._begun += 1
        if leaves_start:  # else the next turn of the thread would bring the shorter limit
            self._arm(self.timeout_seconds)

    def limit(self) -> int:
        """Return how many seconds the present phase may last."""
        starting = self._phase == "start"
        return max(START_SECONDS, self.timeout_seconds) if starting else self.timeout_seconds

    def stop(self) -> None:
        """Watch no longer, and leave no heartbeat."""
        self._ended.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        with suppress(OSError):
            heartbeat_file(self.logs, self.rank).unlink()

    def _watch(self) -> None:
        tick = min(LONGEST_TICK, self.timeout_seconds / TICKS)
        begun, still, number = self._begun, 0.0, 0
        looked_at = time.monotonic()
        seen: dict[int, Beat] = {}
        while not self._ended.wait(tick):
            number += 1
            passed, looked_at = time.monotonic() - looked_at, time.monotonic()
            # More than that passes only while the whole process is stopped.
            still = still + min(passed, tick + 1) if begun == self._begun else 0.0
            begun = self._begun
            limit = self.limit()
            self._arm(limit - still)
            self._write(number)
            if still < limit / 2:
                seen = {}
            elif not seen:
                seen = self._read()
            elif still >= limit:
                self._end(seen, still)

    def _arm(self, seconds: float) -> None:
        """End this rank later, unless the thread, or this call again, comes before."""
        # An extension may keep the interpreter, and then no thread of Python's gets a turn.
        faulthandler.dump_traceback_later(seconds + SLACK_SECONDS, exit=True)

    def _write(self, number: int) -> None:
        place = self._whereabouts()
        beat = Beat(number, self._phase, self._step, *place, host=socket.gethostname())
        path = heartbeat_file(self.logs, self.rank)
        with suppress(OSError):  # a full disk is no reason to stop watching
            write_aside(path, json.dumps(beat))

    def _whereabouts(self) -> tuple[str | None, str]:
        """Return where this rank is; where it waits for its writer, that is where the writer is."""
        frames = sys._current_frames()
        collective, place = whereabouts(frames.get(self._main or 0))
        if self._phase == "save" and collective is None:
            for thread in threading.enumerate():
                frame = frames.get(thread.ident or 0)
                if thread.name.startswith(WRITER) and _is_own(frame):
                    return whereabouts(frame)
        return collective, place

    def _read(self) -> dict[int, Beat]:
        beats = {}
        for rank in range(self.world_size):
            with suppress(OSError, ValueError, TypeError):
                text = heartbeat_file(self.logs, rank).read_text()
                beats[rank] = Beat(*json.loads(text))
        return beats

    def _end(self, seen: Mapping[int, Beat], seconds: float) -> None:
        faulthandler.dump_traceback(all_threads=True)
        now = self._read()
        alive = {rank for rank, beat in now.items() if beat.number != seen.get(rank, beat).number}
        alive |= {self.rank}
        if first_to_fail(self.logs.parent, HUNG):
            text = describe({rank: now.get(rank) for rank in range(self.world_size)}, alive)
            self.console.write(
                f"\nerror: no progress for {seconds:.0f} s: {text} (stacks in {self.logs})\n"
            )
            self.console.flush()
        os._exit(HUNG)


def heartbeat_file(logs: Path, rank: int) -> Path:
    """Return the file in which a rank leaves its heartbeat."""
    return logs / f".heartbeat-{rank}"


def whereabouts(frame: FrameType | None) -> tuple[str | None, str]:
    """Return the collective that a stack waits in, or None, and its place in this package."""
    collective, place, innermost = None, "", ""
    while frame is not None and not place:
        code = frame.f_code
        line = f"{Path(code.co_filename).name}:{frame.f_lineno} {code.co_name}"
        innermost = innermost or line
        if collective is None and code.co_filename.endswith(_COLLECTIVES):
            collective = code.co_name
        if _OWN in code.co_filename:
            place = line
        frame = frame.f_back
    return collective, place or innermost


def _is_own(frame: FrameType | None) -> bool:
    """Return whether a stack has anything of this package in it."""
    while frame is not None and _OWN not in frame.f_code.co_filename:
        frame = frame.f_back
    return frame is not None


def describe(beats: Mapping[int, Beat | None], alive: set[int]) -> str:
    """Return what holds a run up, in one sentence: ranks that wait for others come last.

    Args:
        beats: the heartbeat of every rank; None where there is none.
        alive: the ranks whose heartbeat still changes.
    """
    silent: dict[str, list[int]] = {}
    busy: dict[str, list[int]] = {}
    waiting: dict[str, list[int]] = {}
    hosts = {rank: beat.host for rank, beat in beats.items() if beat}
    several = len(set(hosts.values())) > 1
    names = {
        rank: f"{rank} ({hosts[rank]})" if several and rank in hosts else f"{rank}"
        for rank in beats
    }
    for rank, beat in beats.items():
        moment = f"phase {beat.phase}, step {beat.step}" if beat else "no phase"
        if beat is None or rank not in alive:
            text, group = f"silent (last in {moment}): stopped, or the machine is gone", silent
        elif beat.collective is None:
            text, group = f"in {beat.place} ({moment}), in no collective", busy
        else:
            text, group = f"waiting in {beat.collective} ({moment}, {beat.place})", waiting
        group.setdefault(text, []).append(rank)
    return "; ".join(
        f"{_name([names[rank] for rank in ranks])} {text}"
        for group in (silent, busy, waiting)
        for text, ranks in group.items()
    )


def _name(ranks: Sequence[str], most: int = 8) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]} is"
    more = f" and {len(ranks) - most} more" if len(ranks) > most else ""
    return f"ranks {', '.join(ranks[:most])}{more} are"
