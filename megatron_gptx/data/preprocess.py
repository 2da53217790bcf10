"""From raw text to a token dataset."""

import fcntl
import hashlib
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tokenizers

from megatron_gptx import __version__
from megatron_gptx.config.errors import UserError
from megatron_gptx.data.files import file_sha256
from megatron_gptx.data.indexed_dataset import IndexedDatasetWriter
from megatron_gptx.data.manifest import manifest_path, read_manifest, write_manifest
from megatron_gptx.data.mmididx import bin_path, idx_path, token_dtype
from megatron_gptx.data.sources import Account, InputFile, Rejected, Unit, divide, read_unit
from megatron_gptx.data.workers import WorkerPool
from megatron_gptx.tokenizer.build import load_tokenizer

_BATCH_CHARACTERS = 1 << 19  # of text encoded at once: bounds a worker's memory
_EXAMPLES = 100  # rejected lines named in the manifest


@dataclass(frozen=True)
class Options:
    """What decides the bytes of a dataset, besides its inputs and its tokenizer."""

    json_key: str = "text"
    append_eod: bool = False
    ftfy: bool = False
    stop_on_error: bool = False
    eod_token: str | None = None


@dataclass
class Summary:
    """What became of the input. `rejected` counts by reason; examples are PATH:LINE: REASON."""

    num_documents: int = 0
    num_tokens: int = 0
    max_id: int = -1
    text_bytes: int = 0
    empty: int = 0
    repaired: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    rejected_examples: list[str] = field(default_factory=list)


class Task(NamedTuple):
    """A unit of input and its place among all units."""

    number: int
    unit: Unit

    def __str__(self) -> str:
        names = self.unit.paths[0] if len(self.unit.paths) == 1 else f"{self.unit.paths[0]}, ..."
        return f"{names} bytes {self.unit.lines}" if self.unit.lines else names


class Part(NamedTuple):
    """An encoded unit: a file of ids, and (documents,) int64 tokens per document."""

    path: Path
    lengths: npt.NDArray[np.int64]
    max_id: int
    account: Account


class Job(NamedTuple):
    """What every worker needs to know."""

    tokenizer: Path
    options: Options
    dtype: str
    folder: Path


class Encoder:
    """Turns units into parts, one after another."""

    def __init__(self, job: Job) -> None:
        # The library would start a thread per core in every worker.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        self._job, self._dtype = job, np.dtype(job.dtype)
        self._tokenizer = load_tokenizer(job.tokenizer, end_of_document_name=job.options.eod_token)
        self._ending = [self._tokenizer.end_of_document] if job.options.append_eod else []

    def __call__(self, task: Task) -> Part:
        """Encode one unit into a file of its own."""
        options = self._job.options
        account = Account(stop=options.stop_on_error)
        texts = read_unit(task.unit, account, json_key=options.json_key)
        path = self._job.folder / f"{task.number:06}.bin"
        lengths: list[npt.NDArray[np.int64]] = []
        max_id = -1
        with path.open("wb") as file:
            for batch in _batches(_fixed(texts) if options.ftfy else texts):
                encoded = self._tokenizer.encode_batch(batch)
                documents = [ids + self._ending for ids in encoded if ids]
                account.empty += len(batch) - len(documents)
                ids = np.fromiter(chain.from_iterable(documents), np.int64)
                max_id = max(max_id, int(ids.max(initial=-1)))
                lengths.append(np.fromiter(map(len, documents), np.int64, len(documents)))
                file.write(ids.astype(self._dtype).tobytes())
        if max_id > np.iinfo(self._dtype).max:
            raise UserError(
                f"{self._job.tokenizer}: gives id {max_id} but a vocabulary of only "
                f"{self._tokenizer.vocab_size}"
            )
        return Part(path, np.concatenate(lengths or [np.zeros(0, np.int64)]), max_id, account)


def preprocess(
    files: list[InputFile],
    prefix: Path,
    tokenizer: Path,
    options: Options,
    *,
    workers: int = 1,
    overwrite: bool = False,
) -> Summary | None:
    """Write the dataset of some files; return None where it is already there.

    The bytes do not depend on the number of workers. The dataset appears whole or not at all, and
    whatever stops this function, nothing but a finished dataset stays.

    Args:
        files: the input, in order.
        prefix: of the dataset; its folder is made.
        tokenizer: a tokenizer.json.
        options: what decides the bytes.
        workers: processes; one works in this process.
        overwrite: replace a dataset made from something else.

    Raises:
        UserError: input or tokenizer are at fault, no document is left, another dataset is in the
            way, another run is writing it, or a worker died.
    """
    made_from = _made_from(files, tokenizer, options)
    dtype = token_dtype(made_from["tokenizer"]["vocab_size"])
    with _locked(manifest_path(prefix).parent) as folder:
        if not overwrite and _finished(prefix, made_from):
            return None
        for left in folder.glob("parts-*"):  # by a run that was killed
            shutil.rmtree(left)
        parts_folder = folder / f"parts-{os.getpid()}"
        parts_folder.mkdir()
        try:
            job = Job(tokenizer, options, dtype.str, parts_folder)
            tasks = [Task(number, unit) for number, unit in enumerate(divide(files))]
            pool: WorkerPool[Task, Part] = WorkerPool(Encoder, job, workers)
            writer = IndexedDatasetWriter(prefix, dtype, folder=parts_folder)
            try:
                # Closed at once, so that no worker writes into a folder that is being removed.
                with closing(pool.run(tasks)) as parts:
                    summary = _join(tasks, parts, writer)
                # The index appears last, so that with it everything else is there.
                idx_path(prefix).unlink(missing_ok=True)
                write_manifest(manifest_path(prefix), {**made_from, **asdict(summary)})
                writer.finalize()
            except BaseException:
                writer.abort()
                raise
        finally:
            shutil.rmtree(parts_folder)
    return summary


def _join(
    tasks: list[Task], parts: Iterator[tuple[int, Part]], writer: IndexedDatasetWriter
) -> Summary:
    """Append the parts in the order of their units, each as soon as those before it are done."""
    summary, rejected = Summary(), Counter[str]()
    done: dict[int, Part] = {}
    following, first_line = 0, 0
    progress = _Progress(sum(task.unit.num_bytes for task in tasks))
    for index, part in parts:
        done[index] = part
        while following in done:
            task, part = tasks[following], done.pop(following)
            account = part.account
            writer.append_file(part.path, part.lengths)
            part.path.unlink()
            if task.unit.lines is None or task.unit.lines[0] == 0:
                first_line = 0
            for entry in account.rejected[: _EXAMPLES - len(summary.rejected_examples)]:
                summary.rejected_examples.append(_describe(entry, first_line))
            first_line += account.num_lines
            rejected += account.reasons
            summary.max_id = max(summary.max_id, part.max_id)
            summary.text_bytes += account.text_bytes
            summary.empty += account.empty
            summary.repaired += account.repaired
            following += 1
        progress.show(tasks[index].unit.num_bytes)
    progress.clear()
    summary.rejected = dict(rejected.most_common())
    summary.num_documents, summary.num_tokens = writer.num_documents, writer.num_tokens
    if not summary.num_documents:
        raise UserError(
            f"no document in {len(tasks)} part(s) of the input: {summary.empty} empty, "
            f"{rejected.total()} rejected"
            + (f", such as {summary.rejected_examples[0]}" if summary.rejected_examples else "")
        )
    return summary


def _made_from(files: list[InputFile], tokenizer: Path, options: Options) -> dict[str, Any]:
    loaded = load_tokenizer(tokenizer, end_of_document_name=options.eod_token)
    return {
        "format": 1,
        "version": __version__,
        "engine": f"tokenizers {tokenizers.__version__}",
        "inputs": describe_inputs(files),
        "tokenizer": {"sha256": file_sha256(tokenizer), "vocab_size": loaded.vocab_size},
        "end_of_document": loaded.end_of_document if options.append_eod else None,
        "options": asdict(options),
    }


def describe_inputs(files: Iterable[InputFile]) -> dict[str, Any]:
    """Return number, size and fingerprint of input files: paths, sizes and times of change."""
    files = list(files)
    digest = hashlib.sha256()
    for file in files:
        digest.update(os.fsencode(f"{file.path}\0{file.num_bytes}\0{file.modified_ns}\0"))
    return {
        "files": len(files),
        "bytes": sum(file.num_bytes for file in files),
        "sha256": digest.hexdigest(),
    }


def _finished(prefix: Path, made_from: dict[str, Any]) -> bool:
    """Return whether this very dataset is there already; refuse if another one is."""
    manifest = read_manifest(manifest_path(prefix))
    if idx_path(prefix).exists() and bin_path(prefix).exists():
        if manifest is None:
            raise UserError(
                f"{prefix}: a dataset is there that this tool did not make; choose another prefix "
                "or replace it with --overwrite"
            )
        changed = [
            name
            for name in ("inputs", "tokenizer", "options")
            if manifest.get(name) != made_from[name]
        ]
        if changed:
            raise UserError(
                f"{prefix}: a dataset made from other {' and '.join(changed)} is there; choose "
                "another prefix or replace it with --overwrite"
            )
        return True
    # With our folder, a lone .bin is what a killed run left; without it, it is somebody's file.
    if bin_path(prefix).exists() and manifest is None:
        raise UserError(f"{bin_path(prefix)}: in the way, without its .idx; remove it")
    return False


@contextmanager
def _locked(folder: Path) -> Iterator[Path]:
    """Hold a folder against other runs; remove it afterwards if nothing is in it."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{folder}: another run is writing this dataset") from error
        try:
            yield folder
        finally:
            with suppress(OSError):  # not empty, which is the usual case
                folder.rmdir()
    finally:
        os.close(handle)


def _describe(entry: Rejected, first_line: int) -> str:
    where = entry.path if entry.line is None else f"{entry.path}:{first_line + entry.line}"
    return f"{where}: {entry.reason}"


def _fixed(texts: Iterable[str]) -> Iterator[str]:
    import ftfy  # only where asked for: it takes longer to import than all the rest

    fix: Callable[[str], str] = ftfy.fix_text
    return map(fix, texts)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Progress:
    """One line on a terminal; nothing in a log file."""

    def __init__(self, total_bytes: int) -> None:
        self._total, self._done = max(total_bytes, 1), 0
        self._started_at = time.perf_counter()

    def show(self, num_bytes: int) -> None:
        self._done += num_bytes
        speed = self._done / 1e6 / (time.perf_counter() - self._started_at)
        self._write(f"\r{self._done / self._total:6.1%}  {speed:.1f} MB/s ")

    def clear(self) -> None:
        self._write("\r" + " " * 30 + "\r")

    def _write(self, text: str) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(text)
            sys.stderr.flush()
