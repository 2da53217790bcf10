"""Units of text turned into parts of a dataset, each a file of its own."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from megatron_gptx.config.errors import UserError
from megatron_gptx.corpus.fix_text import Mode, text_fixer
from megatron_gptx.corpus.read_texts import Account, Reading, read_unit
from megatron_gptx.corpus.sources import Unit
from megatron_gptx.tokenizer.base import Batch, Tokenizer
from megatron_gptx.tokenizer.build import BYTES, load_tokenizer
from megatron_gptx.tokenizer.engine import (
    EncodeBatch,
    EngineMismatchError,
    compare,
    gigatoken_encoder,
)
from megatron_gptx.tokenizer.locate import locate

_BATCH_CHARACTERS = 1 << 19  # of text encoded at once: bounds a worker's memory
_COMPARED_CHARACTERS = 512  # of each unit, encoded by both engines


@dataclass(frozen=True)
class Options:
    """What decides the bytes of a dataset, besides its inputs and its tokenizer."""

    json_key: str = "text"
    append_eod: bool = False
    ftfy: Mode | None = None
    special_tokens: Literal["text", "keep", "error"] = "text"
    longest_document: int = 1 << 30
    stop_on_error: bool = False
    eod_token: str | None = None
    chat: dict[str, str] | None = None  # see `read_template`
    labels: bool = False  # of a chat: what is to be learned at each token, in place of the ids

    def reading(self, tokenizer: Tokenizer) -> Reading:
        """Return what decides which texts there are."""
        forbidden = tokenizer.special_tokens if self.special_tokens == "error" else frozenset()
        if self.chat is not None:
            from megatron_gptx.corpus.chat import ChatTemplate  # few need it

            template = ChatTemplate(self.chat, tokenizer.special_tokens, forbidden)
            plain = Reading(self.json_key, longest_bytes=self.longest_document)
            return plain._replace(chat=template.segments)
        fix = text_fixer(self.ftfy) if self.ftfy else None
        return Reading(self.json_key, forbidden, self.longest_document, fix)


class Vocabulary(NamedTuple):
    """Where a tokenizer lies; see `load_tokenizer`. `revision` is that of the hub's model."""

    path: str
    merges: str | None = None
    revision: str | None = None

    def located(self) -> "Vocabulary":
        """Return it by its files, so that no worker asks the hub again."""
        if self.path == BYTES:
            return self
        files = locate(self.path, self.merges)
        merges = str(files.paths[1]) if len(files.paths) > 1 else None
        return Vocabulary(str(files.paths[0]), merges, files.revision)

    def load(self, options: Options) -> Tokenizer:
        """Return the tokenizer."""
        return load_tokenizer(
            self.path,
            merges=self.merges,
            end_of_document_name=options.eod_token,
            special_tokens_as_text=options.special_tokens != "keep",
        )


class Task(NamedTuple):
    """A unit of input and its place among all units."""

    number: int
    unit: Unit

    def __str__(self) -> str:
        names = self.unit.paths[0] if len(self.unit.paths) == 1 else f"{self.unit.paths[0]}, ..."
        return f"{names} {self.unit.kind} {self.unit.span}" if self.unit.span else names


class Part(NamedTuple):
    """An encoded unit: a file of ids, and beside it one of int64 tokens per document.

    `mismatch` says how gigatoken went wrong. `error` is one of the user's, handed over like a part,
    so that the first one in the input is reported and not the first one found.
    """

    path: Path
    num_documents: int
    num_tokens: int
    max_id: int
    account: Account
    mismatch: str | None = None
    error: str | None = None

    @property
    def lengths_path(self) -> Path:
        """The file of tokens per document."""
        return self.path.with_suffix(".lengths")

    def remove(self) -> None:
        """Remove both files."""
        self.path.unlink()
        self.lengths_path.unlink()


class Job(NamedTuple):
    """What every worker needs to know."""

    vocabulary: Vocabulary
    options: Options
    dtype: str
    folder: Path
    gigatoken: bool


class Encoder:
    """Turns units into parts, one after another."""

    def __init__(self, job: Job) -> None:
        # The library would start a thread per core in every worker.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        self._job, self._dtype = job, np.dtype(job.dtype)
        self._tokenizer = job.vocabulary.load(job.options)
        self._reading = job.options.reading(self._tokenizer)
        self._encode: EncodeBatch = (
            gigatoken_encoder(self._tokenizer) if job.gigatoken else self._tokenizer.encode_batch
        )
        self._encode_documents = self._encode
        if job.options.chat is not None:
            from megatron_gptx.corpus.chat import ChatEncoder  # few need it

            end = self._tokenizer.end_of_document if job.options.append_eod else None
            self._encode_documents = ChatEncoder(
                self._tokenizer, self._encode, labels=job.options.labels, end=end
            ).encode_batch
        self._vocab_size = self._tokenizer.vocab_size

    def __call__(self, task: Task) -> Part:
        """Encode one unit into a file of its own."""
        account = Account(stop=self._job.options.stop_on_error)
        texts = read_unit(task.unit, account, self._reading)
        path = self._job.folder / f"{task.number:08}.bin"
        part = Part(path, 0, 0, -1, account)
        with path.open("wb") as file, part.lengths_path.open("wb") as lengths:
            try:
                for number, batch in enumerate(_batches(texts)):
                    if number == 0 and self._job.gigatoken:
                        self._compare(batch[task.number % len(batch)])
                    part = self._write(self._encode_documents(batch), part, file, lengths)
            except EngineMismatchError as error:
                return part._replace(mismatch=str(error))
            except UserError as error:
                return part._replace(error=str(error))
        return part

    def _compare(self, text: str) -> None:
        # A different place in each document, and not only how it begins.
        start = len(text) * 7 // 11 if len(text) > _COMPARED_CHARACTERS else 0
        compare(self._encode, self._tokenizer, [text[start : start + _COMPARED_CHARACTERS]])

    def _write(self, encoded: Batch, part: Part, file: BinaryIO, lengths: BinaryIO) -> Part:
        sizes = encoded.lengths[encoded.lengths > 0]
        part.account.empty += encoded.lengths.size - sizes.size
        highest = int(encoded.ids.max(initial=0)) if sizes.size else -1
        if highest >= self._vocab_size:
            raise UserError(
                f"{self._job.vocabulary.path}: gives id {highest}, beyond its own vocabulary of "
                f"{self._vocab_size}"
            )
        ids = encoded.ids.astype(self._dtype)
        if self._job.options.append_eod and self._job.options.chat is None:
            end = self._tokenizer.end_of_document
            ids, sizes = _with_ends(ids, sizes, end), sizes + 1
            highest = max(highest, end if sizes.size else -1)
        file.write(ids.data)
        lengths.write(sizes.astype("<i8").data)
        return part._replace(
            num_documents=part.num_documents + sizes.size,
            num_tokens=part.num_tokens + ids.size,
            max_id=max(part.max_id, highest),
        )


def _with_ends(
    ids: npt.NDArray[np.integer], lengths: npt.NDArray[np.int64], end: int
) -> npt.NDArray[np.integer]:
    """Return the ids with one more after each document."""
    longer = np.empty(ids.size + lengths.size, ids.dtype)
    ends = np.cumsum(lengths + 1) - 1
    longer[ends] = end
    keep = np.ones(longer.size, bool)
    keep[ends] = False
    longer[keep] = ids
    return longer


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
