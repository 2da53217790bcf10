"""Tensors made to do harm, which a forged manifest vouches for: a message each, and none loaded."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save

from megatron_gptx.checkpoint.load import load_layers
from megatron_gptx.checkpoint.manifest import Checkpoint, CheckpointError, read
from megatron_gptx.config.parallel import LaunchConfig
from megatron_gptx.launcher.command_line import encode
from megatron_gptx.model.sequential import GPTXSequential
from tests.checkpoints import OPTIMIZER_FILE, WEIGHTS_FILE, link_newest, peak_bytes, vouch_for
from tests.runs import start_ranks

SPARE_BYTES = 256 * 2**20
Tensors = dict[str, Any]
Change = Callable[[Tensors], Any]


def raw(header: Any, data: bytes = b"") -> bytes:
    """Return a safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: str, shape: list[int], start: int, stop: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


FILES: dict[str, bytes] = {
    "nothing": b"",
    "three bytes": b"abc",
    "a header without end": struct.pack("<Q", 2**63) + b"{}",
    "a header that is no JSON": raw(b"harm"),
    "a deep header": raw(b"[" * 100_000),
    "10^15 elements": raw({"w": entry("F32", [10**15], 0, 4 * 10**15)}, bytes(64)),
    "more elements than bytes": raw({"w": entry("F32", [10**15], 0, 64)}, bytes(64)),
    "a shape beyond all numbers": raw({"w": entry("F32", [2**62, 2**62], 0, 64)}, bytes(64)),
    "a negative place": raw({"w": entry("F32", [16], -64, 0)}, bytes(64)),
    "two in one place": raw(
        {"v": entry("F32", [16], 0, 64), "w": entry("F32", [16], 0, 64)}, bytes(64)
    ),
    "a type that is none": raw({"w": entry("HARM", [16], 0, 64)}, bytes(64)),
    "no tensors": raw({}),
}


def first(tensors: Tensors, kind: str) -> str:
    return next(name for name in sorted(tensors) if f"/{kind}/" in name)


def rename(change: Callable[[str], str]) -> Change:
    def renamed(tensors: Tensors) -> None:
        name = first(tensors, "exp_avg")
        tensors[change(name)] = tensors.pop(name)

    return renamed


def converted(change: Callable[[Any], Any]) -> Change:
    def convert(tensors: Tensors) -> None:
        for name, tensor in tensors.items():
            tensors[name] = change(tensor).contiguous()

    return convert


def twice(tensors: Tensors) -> None:
    name = first(tensors, "exp_avg")
    tensors[f"{name}0"] = tensors[name].clone()  # the same start, written as 00


def halves_overlap(tensors: Tensors) -> None:
    """Leave the end of a range unsaid, and say its start twice: as many elements as before."""
    name = max(tensors, key=lambda name: ("/exp_avg/" in name, len(tensors[name])))
    half = len(tensors[name]) // 2
    assert 2 * half == len(tensors[name]) > 2
    start = tensors.pop(name)[:half].clone()
    parameter = name.rpartition("/")[0]
    tensors[f"{parameter}/0"] = start
    tensors[f"{parameter}/1"] = start.clone()


OPTIMIZER_CHANGES: dict[str, Change] = {
    "a name without a start": rename(lambda name: name.rpartition("/")[0]),
    "a name without parts": rename(lambda name: "harm"),
    "a negative start": rename(lambda name: name.rpartition("/")[0] + "/-1"),
    "a start that is no number": rename(lambda name: name.rpartition("/")[0] + "/0x10"),
    "a start of 5000 digits": rename(lambda name: name.rpartition("/")[0] + "/" + "9" * 5000),
    "a start far away": rename(lambda name: name.rpartition("/")[0] + f"/{10**16}"),
    "a range twice": twice,
    "ranges that overlap": halves_overlap,
    "a missing moment": lambda tensors: tensors.pop(first(tensors, "exp_avg_sq")),
    "integers": converted(lambda tensor: tensor.int()),
    "half precision": converted(lambda tensor: tensor.bfloat16()),
    "tables": converted(lambda tensor: tensor.view(1, -1)),
    "single numbers": converted(lambda tensor: tensor[0]),
}
WEIGHT_CHANGES: dict[str, Change] = {
    "integers": converted(lambda tensor: tensor.short()),
    "complex numbers": converted(lambda tensor: tensor.float() + 0j),
    "a missing tensor": lambda tensors: tensors.popitem(),
    "flat tensors": converted(lambda tensor: tensor.flatten()),
    "longer tensors": converted(lambda tensor: tensor.repeat_interleave(2, 0)),
}


def write_file(checkpoint: Checkpoint, name: str, content: bytes | Change) -> None:
    """Replace a file, and have the manifest vouch for it."""
    path = checkpoint.path / name
    tensors = None if isinstance(content, bytes) else load_file(path)
    path.unlink()
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(tensors)
        # Older releases of safetensors write no complex numbers, but doubles, which are as long.
        double = {n: t.view(torch.float64) if t.is_complex() else t for n, t in tensors.items()}
        path.write_bytes(save(double).replace(b'"F64"', b'"C64"'))
    vouch_for(checkpoint.path, name)


def resume_all(packed: str, root: Path) -> None:
    """Resume from every run in a folder with one engine; note what is said of each."""
    from megatron_gptx.checkpoint.load import resume
    from megatron_gptx.distributed.process import Process, run_worker
    from megatron_gptx.launcher.command_line import decode
    from megatron_gptx.training.build import build_engine

    config = decode(packed)
    said: dict[str, str | None] = {}

    def work(process: Process) -> None:
        engine = build_engine(config, process, say=lambda text: None).deepspeed
        before = peak_bytes()
        for run_dir in sorted(root.iterdir()):
            output = config.output.model_copy(update={"run_dir": str(run_dir)})
            try:
                resume(engine, config=config.model_copy(update={"output": output}), say=print)
                said[run_dir.name] = None
            except CheckpointError as error:
                said[run_dir.name] = str(error)
        notes = {"said": said, "bytes": peak_bytes() - before}
        (root.parent / "said.json").write_text(json.dumps(notes))

    run_worker(work, run_dir=root.parent / "logs", launch=LaunchConfig(timeout_seconds=60))


def test_tensors_that_the_manifest_vouches_for_are_refused_where_they_are_none(forgeable, tmp_path):
    forged: dict[str, tuple[str, bytes | Change]] = {
        **{f"weights, {what}": (WEIGHTS_FILE, content) for what, content in FILES.items()},
        **{f"optimizer, {what}": (OPTIMIZER_FILE, content) for what, content in FILES.items()},
        **{f"weights, {what}": (WEIGHTS_FILE, change) for what, change in WEIGHT_CHANGES.items()},
        **{f"moments, {w}": (OPTIMIZER_FILE, change) for w, change in OPTIMIZER_CHANGES.items()},
    }
    root = tmp_path / "forged"
    for what, (name, content) in forged.items():
        write_file(link_newest(forgeable, root / what), name, content)
    write_file(link_newest(forgeable, root / "rewritten"), OPTIMIZER_FILE, lambda tensors: None)
    write_file(link_newest(forgeable, root / "rewritten too"), WEIGHTS_FILE, lambda tensors: None)
    # The masters are read where the precision is higher than that of the weights.
    for precision in ("bf16", "fp32"):
        config = forgeable.model_copy(update={"precision": precision})
        assert start_ranks(resume_all, 1, encode(config), root) == [0]
        notes = json.loads((tmp_path / "said.json").read_text())
        loaded = [what for what, said in notes["said"].items() if said is None]
        assert loaded == ["rewritten", "rewritten too"]
        for said in notes["said"].values():
            assert said is None or "step-00000001 does not fit this model: " in said
            assert said is None or len(said) < 10_000
        assert notes["bytes"] < SPARE_BYTES


@pytest.mark.parametrize("what", [*FILES, *WEIGHT_CHANGES])
def test_weights_that_are_none_are_refused_for_generation_too(forgeable, tmp_path, what):
    found = link_newest(forgeable, tmp_path / "run")
    write_file(found, WEIGHTS_FILE, FILES[what] if what in FILES else WEIGHT_CHANGES[what])
    with pytest.raises(CheckpointError, match=r"layer-002.safetensors does not fit its layer"):
        load_layers(read(found.path), GPTXSequential(forgeable.model).local_layers())
