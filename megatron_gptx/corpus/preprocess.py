"""From raw text to a token dataset."""

import errno
import hashlib
import os
import shutil
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from megatron_gptx import __version__
from megatron_gptx.config.errors import UserError
from megatron_gptx.corpus.encode import Encoder, Job, Options, Part, Task, Vocabulary
from megatron_gptx.corpus.open_input import InputFile, Kind
from megatron_gptx.corpus.parquet_and_hub import DATASETS
from megatron_gptx.corpus.progress_line import Progress
from megatron_gptx.corpus.read_texts import Account, read_unit
from megatron_gptx.corpus.resume_state import State, Summary, read_state, write_state
from megatron_gptx.corpus.sources import UNIT_BYTES, divide
from megatron_gptx.corpus.worker_pool import WorkerPool
from megatron_gptx.dataset.manifest import FORMAT, manifest_path, read_manifest, write_manifest
from megatron_gptx.dataset.mmididx import bin_path, idx_path, token_dtype
from megatron_gptx.dataset.writer import IndexedDatasetWriter, folder_of
from megatron_gptx.files.checksums import checksums
from megatron_gptx.tokenizer.base import Tokenizer, marker_ids
from megatron_gptx.tokenizer.engine import (
    EngineMismatchError,
    Wanted,
    choose_engine,
    may_have_gigatoken,
)

_SAVE_SECONDS = 2.0  # between two states that a run can be resumed at
_FIRST_PARTS = 32  # where the documents are looked for that the engines are compared with
_LENGTHS = 1 << 20  # documents joined at once: bounds this process's memory


@dataclass
class Outcome:
    """A finished dataset, and how it came about."""

    summary: Summary
    engine: str
    reason: str | None
    resumed_parts: int
    num_parts: int


def preprocess(
    files: list[InputFile],
    prefix: Path,
    vocabulary: Vocabulary,
    options: Options,
    *,
    workers: int = 1,
    overwrite: bool = False,
    engine: Wanted = "auto",
) -> Outcome | None:
    """Write the dataset of some files; return None where it is already there.

    The bytes do not depend on the number of workers. The dataset appears whole or not at all.
    Whatever stops this function, the parts that were done stay in PREFIX.d, and the same call takes
    them up again.

    Args:
        files: the input, in order.
        prefix: of the dataset; its folder is made.
        vocabulary: where the tokenizer lies.
        options: what decides the bytes.
        workers: processes; one works in this process.
        overwrite: replace a dataset made from something else.
        engine: what encodes; `auto` takes gigatoken where its ids are the tokenizer's own.

    Raises:
        UserError: input or tokenizer are at fault, no document is left, another dataset is in the
            way, another run is writing it, the disk is full, or a worker died.
    """
    name, vocabulary = vocabulary.path, vocabulary.located()
    tokenizer = vocabulary.load(options)
    made_from = _made_from(files, tokenizer, options)
    made_from["tokenizer"] |= {"name": name, "revision": vocabulary.revision}
    with folder_of(prefix) as folder:
        run = _Run(files, prefix, vocabulary, options, made_from, folder)
        if not overwrite and _finished(prefix, made_from):
            run.discard()  # what a run left that was killed at its very end
            return None
        try:
            try:
                return run.encode(tokenizer, workers, engine)
            except EngineMismatchError as error:
                # Seen by the comparisons during the run: nothing that was written can be trusted.
                run.discard()
                return run.encode(tokenizer, workers, "reference", reason=str(error))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise UserError(f"{error.filename or folder}: {error.strerror}") from error
        finally:
            run.end()


class _Run:
    """One call of `preprocess`, alone in the dataset's folder."""

    def __init__(
        self,
        files: list[InputFile],
        prefix: Path,
        vocabulary: Vocabulary,
        options: Options,
        made_from: dict[str, Any],
        folder: Path,
    ) -> None:
        self._prefix, self._vocabulary, self._options = prefix, vocabulary, options
        self._made_from = made_from
        self._parts, self._state_file = folder / "parts", folder / "progress.json"
        self._dtype = token_dtype(made_from["tokenizer"]["vocab_size"])
        if options.labels:
            self._dtype = np.dtype("<i4")  # some are negative
        self._tasks = [Task(number, unit) for number, unit in enumerate(divide(files))]
        self._same = {**made_from, "unit_bytes": UNIT_BYTES, "num_parts": len(self._tasks)}
        self._state = State()
        self._done = False

    def encode(
        self, tokenizer: Tokenizer, workers: int, wanted: Wanted, *, reason: str | None = None
    ) -> Outcome:
        """Encode what is missing and finish the dataset."""
        writer = self._open_writer()
        resumed = self._state.parts
        tasks = self._tasks[resumed:]
        for left in self._parts.glob("run-*"):  # by an earlier run
            shutil.rmtree(left)
        # A name that was never used: a worker that outlives its run must not meet this one's files.
        folder = self._parts / f"run-{os.getpid()}-{time.time_ns()}"
        folder.mkdir()
        # The processes get ready, and begin, while the engines are compared; if gigatoken then
        # cannot be taken, they are started once more.
        fast_job = wanted != "reference" and may_have_gigatoken(tokenizer)
        processes = max(1, min(workers, len(tasks)))
        job = Job(self._vocabulary, self._options, self._dtype.str, folder, fast_job)
        try:
            with WorkerPool[Task, Part](Encoder, job, processes) as pool:
                parts = pool.run(tasks)
                engine, fast = choose_engine(tokenizer, self._first_texts(tokenizer), wanted=wanted)
                if fast == job.gigatoken:
                    self._join(parts, tasks, writer)
            if fast != job.gigatoken:
                with WorkerPool[Task, Part](
                    Encoder, job._replace(gigatoken=fast), processes
                ) as pool:
                    self._join(pool.run(tasks), tasks, writer)
            outcome = Outcome(
                self._state.summary, engine.name, reason or engine.reason, resumed, len(self._tasks)
            )
            self._finish(writer, outcome, workers)
        except BaseException:
            with suppress(OSError):  # a full disk keeps the state before this one
                self._save(writer)
            with suppress(OSError):
                writer.close()
            raise
        self._done = True
        return outcome

    def discard(self) -> None:
        """Forget all that was done, and remove what was being written when a run was killed."""
        for left in self._state_file.parent.glob(".*.json.*"):
            left.unlink()
        self._state_file.unlink(missing_ok=True)
        shutil.rmtree(self._parts, ignore_errors=True)
        self._state = State()

    def end(self) -> None:
        """Leave only what the next run can use."""
        for left in self._parts.glob("run-*"):
            shutil.rmtree(left, ignore_errors=True)
        if self._done or self._state.parts == 0 or not self._state_file.exists():
            self.discard()

    def _open_writer(self) -> IndexedDatasetWriter:
        """Return a writer that goes on where an earlier run saved, or a new one."""
        open_in_parts = partial(IndexedDatasetWriter, self._prefix, self._dtype, folder=self._parts)
        self._state = read_state(self._state_file, self._same)
        if self._state.parts:
            try:
                return open_in_parts(resume_at=self._state.extent)
            except UserError:  # something is gone
                pass
        self.discard()
        self._parts.mkdir()
        return open_in_parts()

    def _join(
        self,
        parts: Generator[tuple[int, Part], None, None],
        tasks: list[Task],
        writer: IndexedDatasetWriter,
    ) -> None:
        """Append the parts in the order of their units, each as soon as those before it are."""
        early: dict[int, Part] = {}
        sizes = [task.unit.num_bytes for task in self._tasks]
        saved_at, pause = time.monotonic(), _SAVE_SECONDS
        # Closed at once, so that no worker writes into a folder that is being removed.
        with (
            Progress(sum(sizes), sum(sizes[: self._state.parts])) as progress,
            closing(parts),
        ):
            for index, part in parts:
                if part.mismatch is not None:
                    raise EngineMismatchError(part.mismatch)
                early[tasks[index].number] = part
                while self._state.parts in early:
                    self._append(early.pop(self._state.parts), writer)
                progress.add(tasks[index].unit.num_bytes, part.num_tokens)
                if time.monotonic() - saved_at >= pause:
                    began_at = time.monotonic()
                    self._save(writer)
                    saved_at = time.monotonic()
                    # Slow disks are not asked so often that the run would wait for them.
                    pause = max(_SAVE_SECONDS, 20 * (saved_at - began_at))
        summary = self._state.summary
        if not summary.num_documents:
            self._state = State()  # nothing worth keeping
            if not self._tasks:
                raise UserError("no document: all files of the input are empty")
            raise UserError(
                f"no document in {len(self._tasks)} part(s) of the input for the key "
                f"{self._options.json_key!r}: {summary.empty} empty, "
                f"{sum(summary.rejected.values())} rejected"
                + (f", such as {summary.rejected_examples[0]}" if summary.rejected else "")
            )

    def _append(self, part: Part, writer: IndexedDatasetWriter) -> None:
        if part.error is not None:
            raise UserError(part.error)
        state, at = self._state, 0
        with part.lengths_path.open("rb") as file:
            while (lengths := np.fromfile(file, "<i8", _LENGTHS)).size:
                writer.append_file(part.path, lengths, first_byte=at)
                at += int(lengths.sum()) * self._dtype.itemsize
        part.remove()
        first_line = 0 if self._tasks[state.parts].unit.first_of_file else state.first_line
        # All at once: an interruption between two lines must not count half a part.
        self._state = State(
            state.parts + 1,
            first_line + part.account.num_lines,
            writer.extent,
            state.summary.plus(part, first_line),
        )

    def _finish(self, writer: IndexedDatasetWriter, outcome: Outcome, workers: int) -> None:
        self._save(writer)
        tokens, index = writer.complete()
        content = {
            **self._made_from,
            "engine": outcome.engine,
            "engine_reason": outcome.reason,
            **asdict(outcome.summary),
            "tokens_per_byte": outcome.summary.tokens_per_byte,
            "checksums": {
                "bin": checksums(tokens, threads=workers),
                "idx": checksums(index, threads=workers),
            },
        }
        # The index appears last, so that with it everything else is there.
        idx_path(self._prefix).unlink(missing_ok=True)
        write_manifest(manifest_path(self._prefix), content)
        writer.finalize()

    def _save(self, writer: IndexedDatasetWriter) -> None:
        if self._state.parts:
            writer.save()
            write_state(self._state_file, self._same, self._state)

    def _first_texts(self, tokenizer: Tokenizer) -> Iterator[str]:
        reading = self._options.reading(tokenizer)
        # Not all: where no document is any good, that would be found only after reading everything.
        for task in self._tasks[:_FIRST_PARTS]:
            yield from read_unit(task.unit, Account(), reading)


def _made_from(files: list[InputFile], tokenizer: Tokenizer, options: Options) -> dict[str, Any]:
    ends = options.append_eod and not options.labels
    guarded = options.special_tokens != "keep" and options.chat is None
    return {
        "format": FORMAT,
        "version": __version__,
        "inputs": describe_inputs(files),
        "tokenizer": {"sha256": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size},
        "end_of_document": tokenizer.end_of_document if ends else None,
        # Ids that stand nowhere but at the end of a document.
        "markers": marker_ids(tokenizer) if guarded else None,
        "options": asdict(options),
        "ftfy": version("ftfy") if options.ftfy else None,
    }


def describe_inputs(files: Iterable[InputFile]) -> dict[str, Any]:
    """Return number, size and fingerprint of inputs: their paths, sizes and versions."""
    files = list(files)
    digest = hashlib.sha256()
    for file in files:
        # The kind only where it is not what the name alone would say, as it once did: what was made
        # then from the same texts stays up to date.
        kind = "" if file.kind in (None, _kind_by_name(file.path)) else f"{file.kind}\0"
        digest.update(os.fsencode(f"{file.path}\0{file.num_bytes}\0{file.version}\0{kind}"))
    return {
        "files": len(files),
        "bytes": sum(file.num_bytes for file in files),
        "sha256": digest.hexdigest(),
    }


def _kind_by_name(path: str) -> Kind:
    if path.startswith(DATASETS):
        return "dataset"
    kinds: dict[str, Kind] = {".jsonl": "lines", ".parquet": "parquet"}
    kinds |= {".jsonl.gz": "stream", ".jsonl.zst": "stream"}
    return next((kind for ending, kind in kinds.items() if path.endswith(ending)), "files")


def _finished(prefix: Path, made_from: dict[str, Any]) -> bool:
    """Return whether this very dataset is there already; refuse if another one is."""
    manifest = read_manifest(manifest_path(prefix))
    if idx_path(prefix).exists() and bin_path(prefix).exists():
        if manifest is None:
            raise UserError(
                f"{prefix}: a dataset is there that this tool did not make; choose another prefix "
                "or replace it with --overwrite"
            )
        # Options that came later were at their defaults.
        known = {**asdict(Options()), **(manifest.get("options") or {})}
        made_with = manifest.get("tokenizer") or {}
        same = {
            "other inputs": manifest.get("inputs") == made_from["inputs"],
            # The same vocabulary may have another name.
            "another tokenizer": made_with.get("sha256") == made_from["tokenizer"]["sha256"],
            "other options": known == made_from["options"],
        }
        changed = [name for name in same if not same[name]]
        if changed:
            raise UserError(
                f"{prefix}: a dataset made from {' and '.join(changed)} is there; choose "
                "another prefix or replace it with --overwrite"
            )
        return True
    # With our folder, a lone .bin is what a killed run left; without it, it is somebody's file.
    if bin_path(prefix).exists() and manifest is None:
        raise UserError(f"{bin_path(prefix)}: in the way, without its .idx; remove it")
    return False
