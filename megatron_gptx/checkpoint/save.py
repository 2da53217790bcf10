"""Saving: a checkpoint becomes visible only when every rank's part of it is on disk."""

import errno
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_gptx.checkpoint.latest import lock
from megatron_gptx.checkpoint.manifest import FORMAT, CheckpointError, seal
from megatron_gptx.checkpoint.names import (
    LATEST,
    MANIFEST,
    NONE,
    SEAL,
    checkpoint_folder,
    checkpoints,
    optimizer_name,
    replaced,
    step_name,
    weights_name,
)
from megatron_gptx.checkpoint.optimizer_state import MASTER, fragments, named_parameters
from megatron_gptx.checkpoint.prune import delete, delete_oldest, prune, tidy
from megatron_gptx.checkpoint.run_description import describe_run
from megatron_gptx.checkpoint.run_tokenizer import tokenizer_folder
from megatron_gptx.checkpoint.safetensors_files import Part, Snapshot, Written, written
from megatron_gptx.checkpoint.upload import Upload
from megatron_gptx.config.schema import Config
from megatron_gptx.distributed.fault_injection import fault_point
from megatron_gptx.distributed.watchdog import WRITER
from megatron_gptx.files.write import PARTIAL, aside_of, sync_path, write_synced

# What a checkpoint may need on disk besides its tensors.
MARGIN_BYTES = 2**20


class Saver:
    """Saves the state of one run; every rank has one and calls the same methods at the same steps.

    All ranks write their parts into a folder aside. When all parts are on disk, rank 0 writes the
    manifest, renames the folder and replaces `latest`: no crash leaves a torn checkpoint behind a
    valid name. With `checkpoint.asynchronous` the parts are copied to host memory, a thread does
    the rest, and a later `poll` tells how it went.
    """

    def __init__(
        self,
        engine: Any,
        config: Config,
        *,
        replica: int,
        say: Callable[[str], None],
        data: Mapping[str, Any] | None = None,
    ) -> None:
        """Take hold of the run's checkpoint folder, and remove what crashes have left in it.

        Args:
            engine: the DeepSpeed engine.
            config: the run's configuration, stored in every manifest.
            replica: this rank's copy of the pipeline.
            say: takes a line for each checkpoint that was saved, or could not be.
            data: the fingerprints of what it trains on, stored in every manifest.

        Raises:
            CheckpointError: another run holds the folder, or `checkpoint.upload` cannot be used.
        """
        self.engine, self.config, self.replica, self.say = engine, config, replica, say
        self.data = data
        self.folder = checkpoint_folder(config.output.run_dir)
        self.leader = dist.get_rank() == 0
        self.run_id = uuid.uuid4().hex
        self.pending: _Pending | None = None
        # What the newest checkpoint says of the best one.
        self.best: Mapping[str, Any] | None = None
        self.num_bytes = 0  # of all ranks' parts; the same in each save
        self.pruned: Future[Any] | None = None
        self.buffers: dict[str, Tensor] = {}  # the copies of the last asynchronous save
        self.writer = ThreadPoolExecutor(1, WRITER, initializer=_yield_to_training)
        # The writers talk while training does. One that waits for another rank's slow disk is no
        # hang, so that only the watchdog ends what training waits for.
        self.group = dist.new_group(backend="gloo", timeout=timedelta(days=1))
        self.pruner = ThreadPoolExecutor(1)
        self.upload: Upload | None = None
        if self.leader:
            if config.checkpoint.upload is not None:
                tokenizer = tokenizer_folder(config.output.run_dir)
                self.upload = Upload(config.checkpoint.upload, say=say, tokenizer=tokenizer)
            self.lock = lock(self.folder)
            tidy(self.folder)
            if not checkpoints(self.folder) and not (self.folder / LATEST).exists():
                write_synced(self.folder / LATEST, f"{NONE}\n".encode())
        dist.barrier()

    def save(
        self,
        state: Mapping[str, int],
        *,
        last: bool,
        guard: Mapping[str, Any] | None = None,
        best: Mapping[str, Any] | None = None,
    ) -> None:
        """Save the state of this step.

        Args:
            state: counters of the run: step, samples, tokens.
            guard: what it goes on from.
            best: step and validation loss of the best checkpoint so far, which is kept.
            last: whether nothing follows: the checkpoint is then complete when this returns, and
                one that cannot be written is an error.

        Raises:
            CheckpointError: it could not be written, and is the last or `checkpoint.on_failure` is
                `stop`.
        """
        self.finish()
        fault_point("save", step=state["step"])
        parts = list(self._parts())
        final = self.folder / step_name(state["step"])
        aside = final.with_name(final.name + PARTIAL)
        try:
            self._make_room(aside, parts)
        except CheckpointError as error:
            self._fail(error, last=last)
            return
        about = describe_run(self.engine, self.config, run_id=self.run_id, data=self.data)
        counts = {"state": dict(state), "guard": dict(guard or {}), "best": best}
        manifest = {"format": FORMAT, **about, **counts}
        if self.config.checkpoint.asynchronous and not last:
            copies = [part.snapshot(self.buffers.get(part.name)) for part in parts]
            self.buffers = {copy.name: copy.content for copy in copies}
            job = _Job(aside, final, manifest, copies)
            self.pending = _Pending(job, self.writer.submit(self._commit, job))
        else:
            job = _Job(aside, final, manifest, parts)
            self._complete(job, self._commit(job), last=last)
        if self.pruned and last:
            self.pruned.result()
        if self.upload and last:
            # Half of what the watchdog gives a save: what is elsewhere ends no run.
            self.upload.finish(timeout_seconds=self.config.launch.timeout_seconds / 2)

    def poll(self) -> None:
        """Complete the save that is under way if it is done on every rank."""
        if self.upload:
            self.upload.poll()
        if self.pending is not None:
            outcome = self.pending.outcome
            if done := outcome.done():
                outcome.result()  # raises what no other rank knows of
            flag = torch.tensor(int(done), device=self.engine.device)
            dist.all_reduce(flag, op=dist.ReduceOp.MIN)
            if flag.item():
                self._settle()

    def finish(self) -> None:
        """Complete the save that is under way, waiting for it."""
        self._settle()
        if self.pruned is not None:
            self.pruned.result()

    def _settle(self) -> None:
        if self.pending is not None:
            pending, self.pending = self.pending, None
            self._complete(pending.job, pending.outcome.result(), last=False)

    def _complete(self, job: "_Job", problems: "list[_Problem]", *, last: bool) -> None:
        """Tell of a checkpoint, or of what went wrong after one more try where a disk was full."""
        if any(problem.disk_full for problem in problems) and self._drop_oldest():
            problems = self._commit(job)
        if problems:
            texts = "; ".join(problem.text for problem in problems)
            self._fail(CheckpointError(f"{job.final} could not be written: {texts}"), last=last)
            return
        self.best = job.manifest["best"]
        self.say(f"step {job.step}: saved {job.final}")
        if self.upload:
            self.upload.add(job.final)

    def _commit(self, job: "_Job") -> "list[_Problem]":
        """Write all ranks' parts and make the checkpoint visible, or return what went wrong.

        All ranks return the same. What is written here waits for the disk all together.
        """
        with ExitStack() as writing:
            context = written(job.aside, job.parts, step=job.step)
            mine = _attempt(lambda: writing.enter_context(context))
            everyone = self._gather(mine.files if isinstance(mine, Written) else mine)
            problems, failure = _problems(everyone), None
            if self.leader and not problems:
                files = {name: entry for part in everyone for name, entry in part.items()}
                failure = _attempt(lambda: mine.others.extend(self._write_manifest(job, files)))
            # Nothing becomes visible before everything is on disk, and nothing is removed that a
            # rank still writes.
            later = self._gather(_attempt(writing.close) or failure)
            problems = problems or _problems(later)
        if self.leader and not problems:
            problems = _problems([_attempt(lambda: self._publish(job))])
        if self.leader and problems:
            shutil.rmtree(job.aside, ignore_errors=True)
        return self._from_leader(problems or None) or []

    def _write_manifest(self, job: "_Job", files: dict[str, Any]) -> list[Path]:
        """Write what makes the folder a checkpoint; return what has to be on disk before it is."""
        fault_point("manifest", step=job.step)
        content = json.dumps({**job.manifest, "files": files}, indent=1).encode()
        (job.aside / SEAL).write_bytes(seal(content))
        (job.aside / MANIFEST).write_bytes(content)
        pointer = aside_of(self.folder / LATEST)
        pointer.unlink(missing_ok=True)  # not what a link in its place leads to
        pointer.write_bytes(f"{job.final.name}\n".encode())
        folders = [job.aside, *(part for part in job.aside.iterdir() if part.is_dir())]
        return [job.aside / SEAL, job.aside / MANIFEST, pointer, *folders]

    def _publish(self, job: "_Job") -> None:
        fault_point("rename", step=job.step)
        if job.final.exists():  # after a return to an earlier step; `latest` may name it
            delete(replaced(job.final))
            job.final.replace(replaced(job.final))
            fault_point("replace", step=job.step)
        try:
            job.aside.replace(job.final)
        except OSError:
            tidy(self.folder)  # gives the old one its name back
            raise
        fault_point("latest", step=job.step)
        aside_of(self.folder / LATEST).replace(self.folder / LATEST)
        # All names lie in this folder, whose journal keeps their order.
        sync_path(self.folder)
        fault_point("prune", step=job.step)
        # To delete a file can take longer than to write it.
        options = self.config.checkpoint
        self.pruned = self.pruner.submit(prune, self.folder, newest=job.final, options=options)

    def _fail(self, error: CheckpointError, *, last: bool) -> None:
        if last or self.config.checkpoint.on_failure == "stop":
            raise error
        self.say(f"not saved: {error}; the run goes on")

    def _make_room(self, aside: Path, parts: Sequence[Part | Snapshot]) -> None:
        """Make the folder aside where there is room for all ranks' parts; all raise together."""
        if not self.num_bytes:
            num_bytes = torch.tensor(sum(part.num_bytes for part in parts))
            dist.all_reduce(num_bytes, group=self.group)
            self.num_bytes = int(num_bytes.item())
        problem: str | None = None
        if self.leader:
            try:
                problem = self._shortage(self.num_bytes + MARGIN_BYTES)
                if problem is None:
                    shutil.rmtree(aside, ignore_errors=True)  # of an attempt that failed
                    aside.mkdir()
            except OSError as error:
                problem = f"{error.filename}: {error.strerror}"
        if problem := self._from_leader(problem):
            raise CheckpointError(f"{aside.with_suffix('')} could not be written: {problem}")

    def _gather(self, mine: Any) -> list[Any]:
        """Return what every rank has to say."""
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, mine, group=self.group)
        return everyone

    def _from_leader(self, found: Any) -> Any:
        """Return on every rank what rank 0 has found; that it is None takes one small message."""
        flag = torch.tensor(int(found is not None))
        dist.broadcast(flag, src=0, group=self.group)
        told = [found]
        if flag.item():
            dist.broadcast_object_list(told, src=0, group=self.group)
        return told[0] if flag.item() else None

    def _shortage(self, needed: int) -> str | None:
        """Return what is wrong where there is no room, even without the oldest checkpoint."""
        if shutil.disk_usage(self.folder).free < needed:
            self._delete_oldest()
        free = shutil.disk_usage(self.folder).free
        if free >= needed:
            return None
        return f"no space left: it needs {needed:,} bytes, and {free:,} are free"

    def _drop_oldest(self) -> bool:
        """Delete the oldest checkpoint but the newest; return on every rank whether one is gone."""
        return self._from_leader(self._delete_oldest() if self.leader else None) is not None

    def _delete_oldest(self) -> Path | None:
        dropped = delete_oldest(self.folder, self.config.checkpoint)
        if dropped is not None:
            self.say(f"deleted {dropped}: no space left for a newer one")
        return dropped

    def _parts(self) -> Iterator[Part | Snapshot]:
        """Yield what this rank writes: its share of the layers, and its optimizer state."""
        from deepspeed import zero

        layers = self.engine.module.local_layers()
        scattered = self.engine.zero_optimization_partition_weights()
        for index, layer in layers.items():
            with zero.GatheredParameters(list(layer.parameters()), enabled=scattered):
                if self._writes(index):
                    part = Part(weights_name(index), dict(layer.state_dict()))
                    yield part.snapshot() if scattered else part
        by_layer: dict[int, dict[str, Tensor]] = {}
        for fragment in fragments(self.engine, named_parameters(layers)):
            if not fragment.has_master and not self._writes(fragment.layer):
                continue  # another replica does, which has the same
            masters = fragment.has_master and self.config.precision != "fp32"
            for kind in (*fragment.moments, MASTER) if masters else fragment.moments:
                name = f"{fragment.name}/{kind}/{fragment.start}"
                by_layer.setdefault(fragment.layer, {})[name] = fragment.get(kind)
        for index, tensors in by_layer.items():
            yield Part(optimizer_name(index, dist.get_rank()), tensors)

    def _writes(self, layer: int) -> bool:
        """Return whether this replica writes what all replicas have of a layer."""
        return layer % (self.config.parallel.data_replicas or 1) == self.replica


class _Problem(NamedTuple):
    """Why a rank could not write."""

    text: str
    disk_full: bool


class _Job(NamedTuple):
    """A checkpoint that is being written."""

    aside: Path
    final: Path
    manifest: dict[str, Any]
    parts: Sequence[Part | Snapshot]

    @property
    def step(self) -> int:
        return int(self.manifest["state"]["step"])


class _Pending(NamedTuple):
    """A checkpoint that is being written by a thread."""

    job: _Job
    outcome: Future[list[_Problem]]


def _yield_to_training() -> None:
    """Let this thread, and those that it starts, run while a processor has nothing else to do."""
    if hasattr(os, "SCHED_IDLE"):  # Linux
        with suppress(OSError):  # a sandbox may forbid it
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _attempt(work: Callable[[], Any]) -> Any:
    """Return what some work returns, or the problem that the file system has with it."""
    try:
        return work()
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return _Problem(f"{where}{error.strerror or error}", full)


def _problems(found: Sequence[Any]) -> list[_Problem]:
    return [each for each in found if isinstance(each, _Problem)]
