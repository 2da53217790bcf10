"""Inputs with rows and columns: parquet files and the `datasets` library."""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from megatron_gptx.config.errors import UserError
from megatron_gptx.corpus.json_keys import find
from megatron_gptx.corpus.open_input import InputFile, open_input

DATASETS = "datasets:"
_ROWS = 1024  # turned into Python objects at once


class TableError(Exception):
    """A table, or a part of it, that cannot be read."""


Span = tuple[int, int]


def divide_parquet(file: InputFile) -> list[tuple[Span, int]]:
    """Return ((row group, its first row), bytes) of a parquet file.

    One that cannot be read is given as one group: who reads it finds out again, and reports it.
    """
    try:
        metadata = _open_parquet(file.path).metadata
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        sizes = [group.num_rows for group in groups]
    except (TableError, OSError):
        return [((0, 0), file.num_bytes)]
    firsts = [sum(sizes[:number]) for number in range(len(sizes))]
    return [((number, first), file.num_bytes // len(groups)) for number, first in enumerate(firsts)]


def read_parquet(path: str, row_group: int, column: str) -> Iterator[Any]:
    """Yield the values of one column, or of a field `column.field` of it, in one row group.

    Raises:
        TableError: the file is damaged, or has no such column.
    """
    file = _open_parquet(path)
    top = _top_of(column, file.schema_arrow.names)
    try:
        for batch in file.iter_batches(_ROWS, row_groups=[row_group], columns=[column]):
            if batch.num_columns == 0:
                raise TableError(f"column {top!r} has no field {column[len(top) + 1 :]!r}")
            yield from _fields(batch.column(0).to_pylist(), top, column)
    except TableError:
        raise
    except Exception as error:  # pyarrow's own, and OSError
        raise TableError(f"damaged parquet: {_one_line(error)}") from error


def dataset_version(name: str) -> InputFile:
    """Return `datasets:NAME` with the size of its memory and the library's own fingerprint."""
    dataset = _load(name)
    return InputFile(name, dataset.data.nbytes, dataset._fingerprint)


def divide_dataset(file: InputFile, unit_bytes: int) -> list[tuple[Span, int]]:
    """Return ((first row, last row), bytes) of a dataset in pieces of about `unit_bytes`."""
    num_rows = len(_load(file.path))
    step = max(1, num_rows * unit_bytes // max(1, file.num_bytes))
    return [
        ((first, min(first + step, num_rows)), unit_bytes) for first in range(0, num_rows, step)
    ]


def read_dataset(name: str, first: int, last: int, column: str) -> Iterator[Any]:
    """Yield the values of one column, or of a field `column.field` of it, in rows [first, last).

    Raises:
        TableError: there is no such column.
    """
    dataset = _load(name)
    top = _top_of(column, dataset.column_names)
    for start in range(first, last, _ROWS):
        yield from _fields(dataset[start : min(start + _ROWS, last)][top], top, column)


def _top_of(column: str, names: Sequence[str]) -> str:
    """Return the column that a name is, or is a field of."""
    top = column if column in names else column.split(".")[0]
    if top not in names:
        raise TableError(f"no column {column!r}, only {', '.join(names)}")
    return top


def _fields(values: Iterable[Any], top: str, column: str) -> Iterator[Any]:
    """Yield the field of each value; of a row without it, null."""
    if top == column:
        yield from values
        return
    for value in values:
        try:
            yield find(value, column[len(top) + 1 :])
        except (KeyError, TypeError, IndexError):
            yield None


def _open_parquet(path: str) -> Any:
    try:
        from pyarrow import ArrowException, parquet  # an extra
    except ImportError as error:
        raise UserError(
            f"{path}: needs the package pyarrow: pip install 'megatron_gptx[data]'"
        ) from error
    try:
        return parquet.ParquetFile(open_input(path), page_checksum_verification=True)
    except ArrowException as error:
        raise TableError(f"not a parquet file: {_one_line(error)}") from error


@lru_cache(maxsize=4)
def _load(name: str) -> Any:
    """Open `datasets:NAME[,CONFIG][@SPLIT]`, where NAME is on the hub or a folder saved to disk."""
    try:
        import datasets  # an extra
    except ImportError as error:
        raise UserError(
            f"{name}: needs the package datasets: pip install 'megatron_gptx[hf]'"
        ) from error
    which, _, split = name.removeprefix(DATASETS).partition("@")
    which, _, config = which.partition(",")
    try:
        if Path(which, "dataset_info.json").is_file() or Path(which, "dataset_dict.json").is_file():
            loaded = datasets.load_from_disk(which)
            if isinstance(loaded, datasets.DatasetDict):
                loaded = loaded[split or "train"]
            return loaded
        return datasets.load_dataset(which, config or None, split=split or "train")
    except Exception as error:  # the library's, the hub's and the network's
        raise UserError(f"{name}: cannot be loaded: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
