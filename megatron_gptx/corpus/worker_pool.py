"""Units of work over processes, with no way to wait for one that died."""

import multiprocessing
import os
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, resource_tracker, util
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar, cast

from megatron_gptx.config.errors import UserError, describe

Unit = TypeVar("Unit")
Result = TypeVar("Result")


# Not forked from here: a fork copies locks that other threads of this process may hold. Forked from
# a process that does nothing but import, each worker finds its modules ready.
_CONTEXT = multiprocessing.get_context("forkserver")
# The name of a socket has 107 bytes at most; multiprocessing puts 32 behind the folder's.
_LONGEST_FOLDER = 107 - len("/pymp-xxxxxxxx/listener-xxxxxxxx")
_AHEAD = 4  # units given to a worker at once: it works on while this process waits for the disk


class WorkerPool(Generic[Unit, Result]):
    """Processes that each take one unit after another; with one worker, no process at all.

    Every worker has a pipe of its own, whose end tells of the worker's death whatever its cause.
    An exception in a worker is raised where results are taken. As a context manager it starts the
    processes at once, so that they get ready while something else is done, and ends them.

    Args:
        start: called once in each worker with `state`; returns the function from unit to result.
            Both must be importable by name, as the processes are no copies of this one.
        state: what `start` needs; pickled.
        workers: processes to start.
    """

    def __init__(
        self, start: Callable[[Any], Callable[[Unit], Result]], state: object, workers: int
    ) -> None:
        assert workers > 0, workers
        self._start, self._state = start, state
        self._num_workers = workers
        self._workers: dict[Connection, BaseProcess] = {}

    def __enter__(self) -> "WorkerPool[Unit, Result]":
        try:
            if self._num_workers == 1:
                return self
            import_ahead(self._start.__module__)
            for _ in range(self._num_workers):
                pipe, process = self._spawn()
                self._workers[pipe] = process
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def run(self, units: Iterable[Unit]) -> Generator[tuple[int, Result], None, None]:
        """Return an iterator over (index of the unit, its result), in no particular order.

        Processes begin with the first units at once, before the iterator is asked for anything.

        Raises, where results are taken:
            UserError: a worker raised one or an OSError, or died.
            RuntimeError: a worker raised anything else.
        """
        waiting = iter(enumerate(units))
        if not self._workers:
            return self._work_here(waiting)
        given: dict[Connection, deque[tuple[int, Unit]]] = {pipe: deque() for pipe in self._workers}

        def give(pipe: Connection) -> None:
            if (item := next(waiting, None)) is not None:
                given[pipe].append(item)
                with suppress(BrokenPipeError, ConnectionResetError):  # its death is found below
                    pipe.send(item[1])

        for _ in range(_AHEAD):
            for pipe in given:
                give(pipe)
        return self._collect(given, give)

    def _end(self) -> None:
        for pipe, process in self._workers.items():
            pipe.close()
            process.kill()
        for process in self._workers.values():
            process.join()
        self._workers.clear()

    def _spawn(self) -> tuple[Connection, BaseProcess]:
        ours, theirs = _CONTEXT.Pipe()
        process = _CONTEXT.Process(
            target=_serve, args=(theirs, self._start, self._state), daemon=True
        )
        with _deaf_to_interrupts():
            process.start()
        theirs.close()  # else the pipe would stay open when the worker dies
        return ours, process

    def _work_here(
        self, units: Iterable[tuple[int, Unit]]
    ) -> Generator[tuple[int, Result], None, None]:
        work = self._start(self._state)
        for index, unit in units:
            yield index, work(unit)

    def _collect(
        self,
        given: dict[Connection, deque[tuple[int, Unit]]],
        give: Callable[[Connection], None],
    ) -> Generator[tuple[int, Result], None, None]:
        while busy := [pipe for pipe, items in given.items() if items]:
            for pipe in cast(list[Connection], wait(busy)):
                try:
                    outcome = pipe.recv()
                except (EOFError, ConnectionResetError):
                    unit = given[pipe][0][1]
                    raise UserError(_death(self._workers[pipe], unit)) from None
                if isinstance(outcome, BaseException):
                    raise outcome
                index, _ = given[pipe].popleft()
                give(pipe)
                yield index, outcome


def import_ahead(module: str) -> None:
    """Begin to import what the workers need, in a process of its own, while this one goes on."""
    shorten_socket_names()
    _CONTEXT.set_forkserver_preload([module])
    with _deaf_to_interrupts():
        forkserver.ensure_running()


def shorten_socket_names() -> None:
    """Let multiprocessing keep its sockets in /tmp where TMPDIR is too long for the name of one."""
    if len(os.fsencode(tempfile.gettempdir())) <= _LONGEST_FOLDER:
        return
    before, tempfile.tempdir = tempfile.tempdir, "/tmp"
    try:
        util.get_temp_dir()  # makes a folder there, which this process keeps to
    finally:
        tempfile.tempdir = before


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Let no Ctrl-C reach the processes that begin here: it goes to all processes of a terminal.

    Only this one shall answer it.
    """
    resource_tracker.ensure_running()  # it would let interrupts through again as it begins
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _serve(pipe: Connection, start: Callable[[Any], Callable[[Any], Any]], state: object) -> None:
    """Work until the parent closes the pipe, or dies, in the middle of a unit if need be."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        work = start(state)
        while True:
            unit = pipe.recv()
            pipe.send(work(unit))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except (UserError, OSError) as error:
        pipe.send(UserError(describe(error)))
    except Exception as error:
        pipe.send(RuntimeError(f"worker {os.getpid()}: {type(error).__name__}: {error}"))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _death(process: BaseProcess, unit: object) -> str:
    process.join()
    code = process.exitcode or 0
    how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
    hint = "; out of memory? use fewer --workers" if code == -signal.SIGKILL else ""
    return f"worker process {process.pid} {how} while it worked on {unit}{hint}"
