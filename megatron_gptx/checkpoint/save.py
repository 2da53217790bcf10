"""Saving: a checkpoint becomes visible only when every rank's part of it is on disk."""

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn

from megatron_gptx import __version__
from megatron_gptx.checkpoint.layout import (
    ENGINE,
    FORMAT,
    LATEST,
    MANIFEST,
    PARTIAL,
    WEIGHTS,
    CheckpointError,
    checkpoint_folder,
    checkpoints,
    checksum,
    step_name,
    weights_file,
    write_synced,
)
from megatron_gptx.config.schema import Config
from megatron_gptx.costs.stages import boundaries
from megatron_gptx.data.files import sync_folder


def save(engine: Any, *, config: Config, state: Mapping[str, int], writes_weights: bool) -> Path:
    """Save a checkpoint; every rank calls this at the same step.

    All parts are written to a folder aside, hashed and synced. Rank 0 then writes the manifest,
    renames the folder and replaces `latest`, so that no crash leaves a torn checkpoint behind a
    valid name.

    Args:
        engine: the DeepSpeed engine.
        config: the run's configuration, stored in the manifest.
        state: counters of the run: step, samples, tokens.
        writes_weights: whether this rank writes its layers (one replica of each stage does).

    Returns:
        The checkpoint's folder.
    """
    folder = checkpoint_folder(config.output.run_dir)
    final = folder / step_name(state["step"])
    aside = final.with_name(final.name + PARTIAL)
    leader = dist.get_rank() == 0
    if leader:
        for torn in folder.glob(f"step-*{PARTIAL}"):
            shutil.rmtree(torn, ignore_errors=True)
        (aside / WEIGHTS).mkdir(parents=True)
    dist.barrier()
    engine.save_checkpoint(str(aside), tag=ENGINE, client_state={}, save_latest=False)
    save_layers(
        aside,
        engine.module.local_layers(),
        gathered=engine.zero_optimization_partition_weights(),
        write=writes_weights,
    )
    dist.barrier()
    files = _hash_and_sync(aside)
    if leader:
        for path in (aside, *(path for path in aside.rglob("*") if path.is_dir())):
            sync_folder(path)
        manifest = {
            "format": FORMAT,
            "state": dict(state),
            "layout": layout_of(config),
            "config": config.model_dump(),
            "versions": {"megatron_gptx": __version__, "torch": str(torch.__version__)},
            "files": files,
        }
        write_synced(aside / MANIFEST, json.dumps(manifest, indent=1))
        if final.exists():
            shutil.rmtree(final)
        aside.replace(final)
        sync_folder(folder)
        write_synced(folder / LATEST, final.name + "\n")
        prune(folder, newest=final, keep_last=config.checkpoint.keep_last)
    dist.barrier()
    return final


def save_layers(
    folder: Path, layers: Mapping[int, nn.Module], *, gathered: bool, write: bool
) -> None:
    """Write one safetensors file per layer; with ZeRO-3 every rank must take part in gathering."""
    from deepspeed import zero

    for index, layer in layers.items():
        with zero.GatheredParameters(list(layer.parameters()), enabled=gathered):
            if write:
                tensors = {k: v.detach().cpu().contiguous() for k, v in layer.state_dict().items()}
                save_file(tensors, weights_file(folder, index))


def layout_of(config: Config) -> dict[str, Any]:
    """Return what must not change between a save and a resume of optimizer state."""
    return {
        "pipeline_stages": config.parallel.pipeline_stages,
        "data_replicas": config.parallel.data_replicas,
        "zero_stage": config.parallel.zero_stage,
        "precision": config.precision,
        "boundaries": boundaries(config),
    }


def _hash_and_sync(folder: Path) -> dict[str, dict[str, Any]]:
    """Return size and checksum of every file, each hashed by one of the ranks."""
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    rank, world_size = dist.get_rank(), dist.get_world_size()
    mine, problem = {}, None
    try:
        for name in names[rank::world_size]:
            path = folder / name
            with path.open("rb+") as file:
                os.fsync(file.fileno())
            mine[name] = {"bytes": path.stat().st_size, "sha256": checksum(path)}
    except OSError as error:
        problem = f"{error.filename}: {error.strerror}"
    parts: list[Any] = [None] * world_size
    dist.all_gather_object(parts, (mine, problem))
    problems = [problem for _, problem in parts if problem]
    if problems:
        raise CheckpointError(f"checkpoint {folder} could not be written: {'; '.join(problems)}")
    return {name: entry for part, _ in parts for name, entry in part.items()}


def prune(folder: Path, *, newest: Path, keep_last: int | None) -> None:
    """Delete the checkpoints before the `keep_last` ones that end with the newest; null keeps all.

    A failed delete is left to the next one.
    """
    if keep_last is None:
        return
    # After going back to an earlier step there are later ones too: they never displace this one.
    present = checkpoints(folder)
    for old in present[: present.index(newest) + 1][:-keep_last]:
        # Under its own name a half-deleted checkpoint would look like a whole one.
        hidden = old.with_name(old.name + PARTIAL)
        with contextlib.suppress(OSError):
            old.replace(hidden)
            shutil.rmtree(hidden)
