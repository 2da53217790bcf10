"""Measure tools/preprocess_data.py on this CPU, in MB/s, against two other ways of doing it.

The corpus is made of the source and documentation files found on this machine, as jsonl. The rivals
use the same vocabulary through Hugging Face tokenizers: one document at a time through a process
pool, whose results come back as lists, which is how GPT-NeoX does it; and `encode_batch` in our own
workers. They get the first megabytes of the corpus only and their clock starts when they are ready,
while ours includes everything from the start of the program. All ids are compared.
"""

import argparse
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import psutil
import tokenizers

from megatron_gptx.files.write import write_aside
from megatron_gptx.tokenizer.train import train_byte_level_bpe

ROOT = Path(__file__).resolve().parents[1]
ENDINGS = {".py", ".pyi", ".c", ".h", ".hpp", ".cpp", ".js", ".ts", ".md", ".rst", ".txt", ".html"}
LARGEST_FILE = 1 << 20  # what is larger is mostly generated


class Run(NamedTuple):
    """One run of the tool or of a rival: how long it took, and its processes' memory together."""

    seconds: float
    peak_bytes: int


def main() -> int:
    """Run the benchmark; return its exit status."""
    if sys.argv[1:2] == ["rival"]:
        encode_by_document(*map(Path, sys.argv[2:5]), workers=int(sys.argv[5]))
        return 0
    options = _parser().parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        results = measure(options, Path(folder))
    show(results)
    if options.output is not None:
        write_aside(options.output, json.dumps(results, indent=2) + "\n")
    return 0


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Make the corpora, run everything, compare the ids, and return all figures."""
    small, large, first = (folder / f"{name}.jsonl" for name in ("small", "large", "first"))
    sizes = {
        path.stem: write_corpus(path, options.roots, int(megabytes * 1e6))
        for path, megabytes in ((small, options.small_mb), (large, options.large_mb))
        if megabytes
    }
    with small.open("rb") as lines, first.open("wb") as target:
        while target.tell() < options.rival_mb * 1e6 and (line := lines.readline()):
            target.write(line)
    sizes["first"] = first.stat().st_size
    tokenizer = folder / "tokenizer.json"
    with small.open(encoding="utf-8") as lines:
        texts = (json.loads(line)["text"] for line in islice(lines, 2000))
        tokenizer.write_text(train_byte_level_bpe(texts, vocab_size=options.vocab_size))

    def ours(corpus: Path, workers: int, engine: str = "auto") -> Run:
        prefix = folder / f"{corpus.stem}-{engine}"
        prefix.with_suffix(".bin").unlink(missing_ok=True)  # else its deletion would be timed
        prefix.with_suffix(".idx").unlink(missing_ok=True)
        command = [
            *(sys.executable, str(ROOT / "tools" / "preprocess_data.py"), str(corpus)),
            *("--tokenizer", str(tokenizer), "--output-prefix", str(prefix), "--overwrite"),
            *("--append-eod", "--workers", str(workers), "--engine", engine),
        ]
        return watch(command)

    workers = options.workers
    rival = [sys.executable, __file__, "rival", first, tokenizer, folder / "rival", workers]
    by_document = watch([str(part) for part in rival])
    seconds = float((folder / "rival.seconds").read_text())
    runs: dict[str, list[Run]] = {"by document": [by_document._replace(seconds=seconds)]}
    # What the start takes is what a corpus of one line takes.
    one_line = folder / "one.jsonl"
    one_line.write_text('{"text": "x"}')
    start = ours(one_line, workers, "reference")
    batch = ours(first, workers, "reference")
    runs["encode_batch"] = [batch._replace(seconds=batch.seconds - start.seconds)]
    corpora = {"": small, ", large": large} if options.large_mb else {"": small}
    for which, corpus in corpora.items():
        for _ in range(options.repeats):
            for count in sorted({1, workers}):
                name = f"ours, {count} worker(s){which}"
                runs.setdefault(name, []).append(ours(corpus, count))
    compare_ids(folder)
    return _results(runs, sizes, workers, options.vocab_size)


def write_corpus(path: Path, roots: list[Path], num_bytes: int) -> int:
    """Write source and documentation files as jsonl, from the first again if they are too few."""
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < num_bytes:
            before = file.tell()
            for number, text in enumerate(_texts(roots)):
                file.write(json.dumps({"text": text, "number": number}) + "\n")
                if file.tell() >= num_bytes:
                    break
            if file.tell() == before:
                raise SystemExit(f"no source files below {', '.join(map(str, roots))}")
        return file.tell()


def _texts(roots: list[Path]) -> Iterator[str]:
    seen = set()
    for root in roots:
        for here, folders, names in os.walk(root):
            folders.sort()
            for name in sorted(names):
                path = Path(here, name)
                if path.suffix not in ENDINGS or path.is_symlink():
                    continue
                try:
                    content = path.read_bytes()
                    text = content.decode()
                except (OSError, UnicodeDecodeError):
                    continue
                if text.strip() and len(content) <= LARGEST_FILE and hash(content) not in seen:
                    seen.add(hash(content))
                    yield text


def watch(command: list[str]) -> Run:
    """Run a command; measure its time and the largest sum of its processes' resident memory."""
    started_at = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    peak, done = 0, threading.Event()

    def look() -> None:
        nonlocal peak
        root = psutil.Process(process.pid)
        while not done.wait(0.05):
            total = 0
            try:
                for each in [root, *root.children(recursive=True)]:
                    total += each.memory_info().rss
            except psutil.Error:  # one of them has just ended
                continue
            peak = max(peak, total)

    watcher = threading.Thread(target=look)
    watcher.start()
    _, message = process.communicate()
    seconds = time.perf_counter() - started_at
    done.set()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{message.decode()}")
    return Run(seconds, peak)


_loaded: list[tokenizers.Tokenizer] = []  # in each process of the rival's pool


def encode_by_document(corpus: Path, tokenizer: Path, output: Path, *, workers: int) -> None:
    """The rival: send lines to a pool, get a list of ids for each, write it."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with multiprocessing.Pool(workers, _load, (str(tokenizer),)) as pool:
        pool.map(_encode_line, ['{"text": "x"}'] * 4 * workers, chunksize=1)  # all are ready
        started_at = time.perf_counter()
        with corpus.open(encoding="utf-8") as lines, output.with_suffix(".bin").open("wb") as file:
            for ids in pool.imap(_encode_line, lines, chunksize=25):
                file.write(np.array(ids, np.uint16).tobytes())
        seconds = time.perf_counter() - started_at
    output.with_suffix(".seconds").write_text(repr(seconds))


def _load(path: str) -> None:
    tokenizer = tokenizers.Tokenizer.from_file(path)
    tokenizer.encode_special_tokens = True
    _loaded.append(tokenizer)


def _encode_line(line: str) -> list[int]:
    (tokenizer,) = _loaded
    return [*tokenizer.encode(json.loads(line)["text"]).ids, 0]


def compare_ids(folder: Path) -> None:
    """Raise unless each way gave the same ids for what it was given."""
    whole = np.memmap(folder / "small-auto.bin", np.uint16)
    for name in ("rival", "first-reference"):
        ids = np.fromfile(folder / f"{name}.bin", np.uint16)
        if not np.array_equal(ids, whole[: ids.size]):
            raise SystemExit(f"{name} gives other ids than ours")


def _results(
    runs: dict[str, list[Run]], sizes: dict[str, int], workers: int, vocab_size: int
) -> dict[str, Any]:
    table = {}
    for name, each in runs.items():
        size = sizes["large" if "large" in name else "small" if "ours" in name else "first"]
        seconds = median(run.seconds for run in each)
        table[name] = {
            "bytes": size,
            "seconds": [run.seconds for run in each],
            "megabytes_per_second": size / 1e6 / seconds,
            "peak_megabytes": max(run.peak_bytes for run in each) / 1e6,
        }
    speed = {name: row["megabytes_per_second"] for name, row in table.items()}
    one, many = "ours, 1 worker(s)", f"ours, {workers} worker(s)"
    ratios = {
        "over by document": speed[many] / speed["by document"],
        "over encode_batch": speed[many] / speed["encode_batch"],
        f"{workers} workers over 1": speed[many] / speed[one],
    }
    if f"{many}, large" in speed:
        ratios[f"{workers} workers over 1, large"] = (
            speed[f"{many}, large"] / speed[f"{one}, large"]
        )
        rates = [_steady_rate(table[name], table[f"{name}, large"]) for name in (one, many)]
        ratios[f"{workers} workers over 1, after the start"] = rates[1] / rates[0]
        peaks = [table[name]["peak_megabytes"] for name in (many, f"{many}, large")]
        ratios["peak memory, large over small"] = peaks[1] / peaks[0]
    return {
        "date": date.today().isoformat(),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "gigatoken": _version("gigatoken"),
        "tokenizers": _version("tokenizers"),
        "vocab_size": vocab_size,
        "workers": workers,
        "runs": table,
        "ratios": ratios,
    }


def _steady_rate(small: dict[str, Any], large: dict[str, Any]) -> float:
    """Return bytes per second between the sizes of two runs, which starting has no part in."""
    seconds = median(large["seconds"]) - median(small["seconds"])
    return (large["bytes"] - small["bytes"]) / seconds


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def show(results: dict[str, Any]) -> None:
    """Print a table."""
    print(f"{results['machine']}; {results['workers']} workers unless named")
    print(f"{'':34}{'input MB':>10}{'seconds':>10}{'MB/s':>9}{'peak MB':>9}")
    for name, row in results["runs"].items():
        print(
            f"{name:34}{row['bytes'] / 1e6:10.1f}{median(row['seconds']):10.2f}"
            f"{row['megabytes_per_second']:9.2f}{row['peak_megabytes']:9.0f}"
        )
    for name, ratio in results["ratios"].items():
        print(f"{name:36}{ratio:8.2f}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    paths = sysconfig.get_paths()
    roots = [Path(paths[name]) for name in ("stdlib", "purelib")]
    roots += [Path("/usr/share"), Path("/usr/include"), Path("/usr/lib")]
    parser.add_argument(
        "--roots", type=Path, nargs="+", default=roots, help="where files are found"
    )
    parser.add_argument("--small-mb", type=float, default=160, help="input of ours (160)")
    parser.add_argument("--large-mb", type=float, default=1500, help="another one; 0: none (1500)")
    parser.add_argument("--rival-mb", type=float, default=20, help="of it for the rivals (20)")
    parser.add_argument("--vocab-size", type=int, default=22000, help="byte-level BPE (22000)")
    parser.add_argument("--workers", type=int, default=2, help="processes of each (2)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of ours; their median (3)")
    parser.add_argument("--folder", type=Path, help="for temporary files (the system's)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    return parser


if __name__ == "__main__":
    sys.exit(main())
