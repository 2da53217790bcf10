"""Units of work over processes, with no way to wait for one that died."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar, cast

from megatron_gptx.config.errors import UserError

Unit = TypeVar("Unit")
Result = TypeVar("Result")


class WorkerPool(Generic[Unit, Result]):
    """Processes that each take one unit at a time; with one worker, no process at all.

    Every worker has a pipe of its own, whose end tells of the worker's death whatever its cause.
    An exception in a worker is raised where results are taken.

    Args:
        start: called once in each worker with `state`; returns the function from unit to result.
            Both must be importable by name, as the processes start afresh.
        state: what `start` needs; pickled.
        workers: processes to start.
    """

    def __init__(
        self, start: Callable[[Any], Callable[[Unit], Result]], state: object, workers: int
    ) -> None:
        assert workers > 0, workers
        self._start, self._state, self._workers = start, state, workers

    def run(self, units: Sequence[Unit]) -> Generator[tuple[int, Result], None, None]:
        """Yield (index of the unit, its result) as they are done, in no particular order.

        Raises:
            UserError: a worker raised one or an OSError, or died.
            RuntimeError: a worker raised anything else.
        """
        if self._workers == 1:
            work = self._start(self._state)
            for index, unit in enumerate(units):
                yield index, work(unit)
            return
        workers: list[tuple[Connection, BaseProcess]] = []
        try:
            for _ in range(min(self._workers, len(units))):
                workers.append(self._spawn())
            yield from self._distribute(dict(workers), units)
        finally:
            for pipe, process in workers:
                pipe.close()
                process.kill()
                process.join()

    def _spawn(self) -> tuple[Connection, BaseProcess]:
        # Afresh, not forked: a fork copies locks that other threads of this process may hold.
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=_serve, args=(theirs, self._start, self._state), daemon=True
        )
        # Ctrl-C goes to all processes of a terminal, but only this one shall answer it; a worker
        # inherits what is blocked here. The tracker unblocks when it starts, so it goes first.
        resource_tracker.ensure_running()
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        theirs.close()  # else the pipe would stay open when the worker dies
        return ours, process

    def _distribute(
        self, workers: dict[Connection, BaseProcess], units: Sequence[Unit]
    ) -> Iterator[tuple[int, Result]]:
        waiting = iter(enumerate(units))
        busy: dict[Connection, int] = {}

        def give(pipe: Connection) -> None:
            if (item := next(waiting, None)) is not None:
                busy[pipe] = item[0]
                with suppress(BrokenPipeError):  # its death is found below
                    pipe.send(item[1])

        for pipe in workers:
            give(pipe)
        while busy:
            for pipe in cast(list[Connection], wait(list(busy))):
                try:
                    outcome = pipe.recv()
                except (EOFError, ConnectionResetError):
                    raise UserError(_death(workers[pipe], units[busy[pipe]])) from None
                if isinstance(outcome, BaseException):
                    raise outcome
                index = busy.pop(pipe)
                give(pipe)
                yield index, outcome


def _serve(pipe: Connection, start: Callable[[Any], Callable[[Any], Any]], state: object) -> None:
    """Work until the parent closes the pipe, or dies, which closes it too."""
    try:
        work = start(state)
        while True:
            unit = pipe.recv()
            pipe.send(work(unit))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except (UserError, OSError) as error:
        pipe.send(UserError(str(error)))
    except Exception as error:
        pipe.send(RuntimeError(f"worker {os.getpid()}: {type(error).__name__}: {error}"))


def _death(process: BaseProcess, unit: object) -> str:
    process.join()
    code = process.exitcode or 0
    how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
    hint = "; out of memory? use fewer --workers" if code == -signal.SIGKILL else ""
    return f"worker process {process.pid} {how} while it worked on {unit}{hint}"
