"""Launches with one mistake each, on the command line or around the run; messages.txt has what is said."""

# One mistake per line keeps the table readable.
# ruff: noqa: E501

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from megatron_gptx.checkpoint.manifest import FORMAT, seal
from megatron_gptx.checkpoint.names import step_name
from megatron_gptx.config.load import load
from megatron_gptx.dataset.manifest import manifest_path
from megatron_gptx.dataset.writer import IndexedDatasetWriter

# What a launch needs besides the options in BASE.
REST = """\
data:
  train: train
  valid: valid
output:
  run_dir: run
launch:
  device: cpu
"""


class Broken(NamedTuple):
    """A command line, and what makes its folder one in which it must fail."""

    words: tuple[str, ...]
    prepare: Callable[[], object] = dict


def train(*overrides: str, prepare: Callable[[], object] = dict) -> Broken:
    return Broken(("train.py", "tiny.yml", *(w for o in overrides for w in ("--set", o))), prepare)


def write(name: str, text: str | bytes) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(text.encode() if isinstance(text, str) else text)


def write_dataset(name: str, documents: list[list[int]], dtype: Any = np.uint16) -> None:
    with IndexedDatasetWriter(Path(name), dtype) as writer:
        for document in documents:
            writer.add_document(np.array(document))


def cut(name: str, num_bytes: int) -> None:
    Path(name).write_bytes(Path(name).read_bytes()[:-num_bytes])


def overwrite(name: str, at: int, content: bytes) -> None:
    whole = bytearray(Path(name).read_bytes())
    whole[at : at + len(content)] = content
    Path(name).write_bytes(whole)


def write_data_manifest(content: Any) -> None:
    write(str(manifest_path("train")), json.dumps(content))


def save(step: int = 10, *, latest: str | None = None, **manifest: Any) -> Path:
    """Write what a run knows a checkpoint by; the files with the weights are not looked at."""
    config = load([Path("tiny.yml")]).model_dump()
    for option, value in manifest.pop("model", {}).items():
        config["model"][option] = value
    content = {
        "format": FORMAT,
        "state": {"step": step, "samples": 8 * step, "tokens": 256 * step},
        "optimizer": {"steps": step},
        "layout": {},
        "guard": {},
        "config": config,
        "files": {},
        **manifest,
    }
    folder = Path("run", "checkpoints", step_name(step))
    text = json.dumps(content).encode()
    write(str(folder / "manifest.json"), text)
    write(str(folder / "manifest.sha256"), seal(text))
    write("run/checkpoints/latest", latest or f"{folder.name}\n")
    return folder


def save_then(change: Callable[[Path], object]) -> Callable[[], object]:
    return lambda: change(save())


HOSTS = ("launch.device=auto", "launch.hostfile=hosts")


def hosts(text: str | bytes, *overrides: str) -> Broken:
    return train(*HOSTS, *overrides, prepare=partial(write, "hosts", text))


LAUNCHES = {
    # the command line
    "an unknown script": Broken(("tain.py", "tiny.yml")),
    "a script that is left out": Broken(("tiny.yml",)),
    "a tool for a script": Broken(("tools/plan.py", "tiny.yml")),
    "no configuration": Broken(("train.py",)),
    "a configuration that is missing": Broken(("train.py", "tinny.yml")),
    "a configuration without its suffix": Broken(("train.py", "tiny")),
    "a configuration of a missing folder": Broken(("train.py", "configs/tiny.yml")),
    "a configuration without a name": Broken(("train.py", "")),
    "a folder for a configuration": Broken(("train.py", "folder"), lambda: Path("folder").mkdir()),
    "a file for a folder": Broken(("train.py", "tiny.yml/x.yml")),
    "a dataset for a configuration": Broken(("train.py", "train.bin")),
    "a configuration behind the options": Broken(("train.py", "tiny.yml", "--dry-run", "more.yml")),
    "a misspelt flag": Broken(("train.py", "tiny.yml", "--dryrun")),
    "a flag cut short": Broken(("train.py", "tiny.yml", "--dry")),
    "a flag with a value": Broken(("train.py", "tiny.yml", "--dry-run=1")),
    "a flag of another program": Broken(("train.py", "tiny.yml", "--deepspeed")),
    "an override without its value": Broken(("train.py", "tiny.yml", "--set")),
    "an override that is a flag": Broken(("train.py", "tiny.yml", "--training.steps=5")),
    "a word that show does not know": Broken(("show", "tiny.yml", "--all")),
    "a job that SLURM does not know": Broken(("train.py", "tiny.yml", "--requeue")),
    "a job of one process": Broken(("generate.py", "tiny.yml", "--requeue")),
    "several files and overrides, all wrong": Broken(("train.py", "tiny.yml", "missing.yml", "tab.yml", "--set", "steps", "--set", "model.layers=3"), partial(write, "tab.yml", "model:\n\tx: 1\n")),
    # the datasets
    "no dataset": train("data.train=null"),
    "a dataset with a typo": train("data.train=trian"),
    "a dataset of a missing folder": train("data.valid=data/valid"),
    "a dataset with its suffix": train("data.train=train.bin"),
    "a dataset in the home of nobody": train("data.train=~/no-such-folder/train"),
    "a folder for a dataset": train("data.train=folder", prepare=lambda: Path("folder").mkdir()),
    "a text for a dataset": train("data.train=corpus.jsonl", prepare=partial(write, "corpus.jsonl", '{"text": "x"}\n')),
    "several datasets, two of them missing": train("data.train={train: 1, nowhere: 1, elsewhere: 2}"),
    "labels that are missing": train("data.labels={train: lables}"),
    "labels of other lengths": train("data.labels={train: valid}"),
    "ids above the vocabulary": train("model.vocab_size=63"),
    "ids below 0": train("data.train=negative", prepare=lambda: write_dataset("negative", [[1] * 50, [-7]], np.int32)),
    "a dataset that is cut off": train(prepare=partial(cut, "train.bin", 100)),
    "an index that is cut off": train(prepare=partial(cut, "train.idx", 100)),
    "an index of nothing": train(prepare=partial(write, "train.idx", b"")),
    "an index of another format": train(prepare=partial(overwrite, "train.idx", 0, b"PK\x03\x04")),
    "an index of another version": train(prepare=partial(overwrite, "train.idx", 9, b"\x07")),
    "ids of an unknown kind": train(prepare=partial(overwrite, "train.idx", 17, b"\x63")),
    "fewer tokens than a sample takes": train("data.train=short", prepare=lambda: write_dataset("short", [[1] * 20])),
    "a split that leaves too little": train("data.valid=null", "data.split=9999,1,0"),
    "a manifest that is no JSON": train(prepare=lambda: write(str(manifest_path("train")), "{")),
    "a manifest that is a list": train(prepare=partial(write_data_manifest, [])),
    "a warm-up longer than the epochs": train("training.steps=null", "training.epochs=0.01", "schedule.warmup_steps=50"),
    # the tokenizer
    "a tokenizer that is missing": train("data.tokenizer=tokenizer.jsn"),
    "a tokenizer that is no JSON": train("data.tokenizer=tokenizer.json", prepare=partial(write, "tokenizer.json", "{")),
    "a tokenizer larger than the vocabulary": train("data.tokenizer=bytes"),
    "a tokenizer of other data": train("data.tokenizer=bytes", "model.vocab_size=300", prepare=lambda: write_data_manifest({"num_tokens": np.memmap("train.bin", np.uint16).size, "max_id": 63, "tokenizer": {"sha256": "ab" * 32}})),
    "infilling with a tokenizer that cannot": train("data.tokenizer=bytes", "model.vocab_size=300", "data.fill_in_the_middle.rate=0.5"),
    # the checkpoints
    "a checkpoint of another model": train(prepare=partial(save, model={"hidden_size": 32})),
    "a checkpoint of a model with other ideas": train(prepare=partial(save, model={"hidden_size": 32, "macaron": False, "position": "learned", "attention": {"top_k": 8}})),
    "a checkpoint that an override contradicts": train("model.num_layers=2", prepare=save),
    "a checkpoint where the start is fresh": train("checkpoint.start=fresh", prepare=save),
    "a pointer that is gone": train(prepare=save_then(lambda _: Path("run/checkpoints/latest").unlink())),
    "a pointer to nothing": train(prepare=partial(save, latest="step-00000020\n")),
    "a manifest that is gone": train(prepare=save_then(lambda folder: (folder / "manifest.json").unlink())),
    "a seal that is gone": train(prepare=save_then(lambda folder: (folder / "manifest.sha256").unlink())),
    "a manifest that was changed": train(prepare=save_then(lambda folder: (folder / "manifest.json").write_text((folder / "manifest.json").read_text() + " "))),
    "a manifest that is damaged": train(prepare=save_then(lambda folder: (folder / "manifest.json").write_text("{"))),
    "a checkpoint of another format": train(prepare=partial(save, format=99)),
    "a checkpoint without counters": train(prepare=partial(save, state={})),
    "no manifest that is intact": train("checkpoint.start=intact", prepare=save_then(lambda folder: (folder / "manifest.json").write_text("{"))),
    "nothing to generate from": Broken(("generate.py", "tiny.yml", "--dry-run", "--prompt", "x")),
    "nothing to evaluate": Broken(("evaluate.py", "tiny.yml", "--dry-run")),
    # the run folder
    "no run folder": Broken(("train.py", "bare.yml"), lambda: write("bare.yml", Path("tiny.yml").read_text().replace("output:\n  run_dir: run\n", ""))),
    "no run folder to generate from": Broken(("generate.py", "tiny.yml", "--set", "output.run_dir=")),
    "a run folder that is a file": train("output.run_dir=train.bin"),
    "a run folder below a file": train("output.run_dir=train.bin/run"),
    "logs that are a file": train(prepare=partial(write, "run/logs", "")),
    "checkpoints that are a file": train(prepare=partial(write, "run/checkpoints", "")),
    "a run folder with a long name": train(f"output.run_dir={'x' * 300}"),
    # devices and hosts
    "GPUs that are not there": train("launch.device=cuda", "parallel.pipeline_stages=2"),
    "a GPU that is not there for one process": Broken(("generate.py", "tiny.yml", "--set", "launch.device=cuda")),
    "fp16 without a GPU": train("precision=fp16"),
    "thousands of replicas": train("parallel.data_replicas=4000", "training.global_batch_size=8000"),
    "a hostfile that is missing": train(*HOSTS),
    "a hostfile that is a folder": train(*HOSTS, prepare=lambda: Path("hosts").mkdir()),
    "a hostfile without hosts": hosts("# later\n"),
    "a hostfile of names only": hosts("node1\n"),
    "a hostfile of an MPI": hosts("node1:8\n"),
    "a hostfile of a shell": hosts("$(reboot) slots=1\n"),
    "a host listed twice": hosts("localhost slots=1\nlocalhost slots=1\n"),
    "a host without slots": hosts("localhost slots=0\n"),
    "a hostfile that is no text": hosts(b"\xff\xfe\x00"),
    "slots that do not fit": hosts("localhost slots=3\n", "parallel.pipeline_stages=2"),
    "a launcher that is not installed": hosts("localhost slots=1\n", "launch.launcher=slurm"),
    "hosts that nobody knows": hosts("localhost slots=1\nno-such-host.invalid slots=1\n", "training.global_batch_size=8"),
    "an address that nobody knows": hosts("localhost slots=1\n", "launch.master_addr=no-such-host.invalid"),
    # everything
    "mistakes of every kind": Broken(("train.py", "broken.yml", "--set", "training.step=5", "--set", "data.valid=vaild"), lambda: (save(model={"hidden_size": 32}), write("broken.yml", Path("tiny.yml").read_text().replace("num_heads: 4", "num_heads: 5\n  positoin: none").replace("lr: 3e-4", "lr: fast").replace("  train: train", "  train: train\n  tokenizer: gone.json").replace("device: cpu", "device: cuda")))),
}  # fmt: skip
