"""What a checkpoint was saved with, beside what a run asks for now: values, not spellings."""

import copy
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticUndefined

from megatron_gptx.checkpoint.manifest import Checkpoint, CheckpointError, printable
from megatron_gptx.config.errors import show
from megatron_gptx.config.messages import describe_error, dotted
from megatron_gptx.config.model import ModelConfig
from megatron_gptx.config.optimizers import OptimizerName
from megatron_gptx.config.options import walk_options
from megatron_gptx.config.schema import Config
from megatron_gptx.config.training import EvaluationConfig

# What speaks of one launch and not of what is learned.
_OF_A_LAUNCH = ("launch.", "checkpoint.start", "checkpoint.accept_changes")
# What to do where a run would be two.
TWO_EXPERIMENTS = (
    "choose another output.run_dir for it (checkpoint.initialize_from takes weights along), or "
    "accept the mixture: --set checkpoint.accept_changes=true"
)
_ROUNDING = "losses are the same up to rounding"
# What a change does to a run that goes on; of others, their name says it.
_EFFECTS = {
    "precision": _ROUNDING,
    "parallel.": _ROUNDING,
    "ops.": _ROUNDING,
    "data.valid": "validation losses cannot be compared with earlier ones",
    "evaluation.batches": "validation losses cannot be compared with earlier ones",
    "training.global_batch_size": "steps are of another size, and the schedule counts steps",
}


def check_model(
    checkpoint: Checkpoint, model: ModelConfig, *, any_seq_length: bool = False
) -> None:
    """Raise CheckpointError, listing the differences, where a checkpoint is of another model.

    An option that the checkpoint does not know had its default when it was saved.

    Args:
        checkpoint: what was saved.
        model: what is wanted.
        any_seq_length: let `seq_length` differ where no weight depends on it.
    """
    saved = saved_model(checkpoint, type(model))
    if any_seq_length and model.position != "learned":
        saved = saved.model_copy(update={"seq_length": model.seq_length})
    differing = [
        f"{option}: {before} in the checkpoint, {now} in the configuration"
        for option, (before, now) in sorted(model.differences(saved).items())
    ]
    if differing:
        raise CheckpointError(
            f"{checkpoint.path} holds another model:\n  model." + "\n  model.".join(differing)
        )


def check_optimizer(checkpoint: Checkpoint, wanted: OptimizerName) -> None:
    """Raise CheckpointError where a checkpoint holds the state of another optimizer."""
    saved = saved_optimizer(checkpoint)
    if saved != wanted:
        raise CheckpointError(
            f"{checkpoint.path} holds the state of {saved}, and optimizer.name is {wanted}, which "
            f"cannot go on from it; {optimizer_remedy(checkpoint)}"
        )


def saved_optimizer(checkpoint: Checkpoint) -> str:
    """Return the name of a checkpoint's optimizer: AdamW where an older version named none."""
    section = checkpoint.manifest["config"].get("optimizer")
    name = section.get("name", "adamw") if isinstance(section, dict) else section
    return printable(str(name))


def optimizer_remedy(checkpoint: Checkpoint) -> str:
    """Return what to do where a checkpoint holds the state of another optimizer."""
    return (
        f"set optimizer.name: {saved_optimizer(checkpoint)} to resume, or choose another "
        f"output.run_dir and begin with the weights alone: checkpoint.initialize_from: "
        f"{checkpoint.path}"
    )


def saved_model(checkpoint: Checkpoint, kind: type[ModelConfig] = ModelConfig) -> ModelConfig:
    """Return the model of a checkpoint, the defaults of younger options filled in.

    Raises:
        CheckpointError: it has options, or values of them, that this version does not know.
    """
    try:
        return kind.model_validate(checkpoint.manifest["config"]["model"])
    except ValidationError as error:
        problems = [
            f"model.{dotted(found['loc'])}: "
            + (
                f"{show(found['input'])} in the checkpoint, an option that this version lacks"
                if found["type"] == "extra_forbidden"
                else describe_error(found)
            )
            for found in error.errors(include_url=False)
        ]
        raise CheckpointError(
            f"{checkpoint.path} holds a model that this version cannot build:\n  "
            + "\n  ".join(problems)
        ) from None


def changed_options(checkpoint: Checkpoint, config: Config) -> list[str]:
    """Return the options that a run is resumed with another value of, one line each."""
    changes = _changes(checkpoint, config)
    return [change + _effect(change) for change in changes if not change.startswith(_OF_A_LAUNCH)]


def _effect(change: str) -> str:
    return next((f" ({does})" for key, does in _EFFECTS.items() if change.startswith(key)), "")


def same_evaluation(checkpoint: Checkpoint, config: Config) -> bool:
    """Return whether validation losses of a checkpoint's run can be compared with those to come."""
    return not any(
        change.startswith(("data", "evaluation"))
        and not change.startswith(("data.prefetch", "data.tokenizer", "evaluation.interval"))
        for change in _changes(checkpoint, config)
    )


def _changes(checkpoint: Checkpoint, config: Config) -> list[str]:
    saved = with_defaults(checkpoint.manifest["config"], type(config))
    return changed_values(_meant(saved), _meant(config.model_dump()))


def _meant(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration in which a null stands for nothing but itself."""
    meant = dict(config)
    with suppress(ValidationError):  # what this version does not know stays as it is
        meant["model"] = ModelConfig.model_validate(config["model"]).resolved.model_dump()
    with suppress(ValidationError):
        evaluation = EvaluationConfig.model_validate(config["evaluation"])
        meant["evaluation"] = {**config["evaluation"], "batches": evaluation.training_batches}
    return meant


def mixed_experiments(
    checkpoint: Checkpoint, config: Config, data: Mapping[str, Any] | None
) -> list[str]:
    """Return what makes a checkpoint and a configuration two experiments, as `OPTION: HOW` each.

    Args:
        checkpoint: what was saved.
        config: the run's configuration now.
        data: the fingerprints of its data, which then may lie elsewhere; else paths are compared.

    Raises:
        CheckpointError: the checkpoint holds no configuration.
    """
    saved, wanted = with_defaults(checkpoint.manifest["config"]), config.model_dump()
    known = checkpoint.manifest.get("data")
    try:
        before = _Experiment(saved, known if data else None)
        after = _Experiment(wanted, data if known else None)
        return [
            _difference(key, before, after)
            for key in before.values
            if _differ(key, before.values, after.values)
        ]
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"{checkpoint.path} holds no configuration that can be compared: {error!r}"
        ) from None


class _Experiment:
    """What decides which samples a run learns from, in which order."""

    def __init__(self, config: Mapping[str, Any], fingerprints: Mapping[str, Any] | None) -> None:
        self.options, self.fingerprints = config, fingerprints or {}
        data = config["data"]
        train = {data["train"]: 1.0} if isinstance(data["train"], str) else data["train"] or {}
        self.train, shares = list(train), [float(s) for s in (data["split"] or "1,0,0").split(",")]
        infill, isolated = data["fill_in_the_middle"], data["isolate_documents"]
        self.values: dict[str, Any] = {
            "training.seed": config["training"]["seed"],
            "data.train": [
                (self._content(prefix), weight / sum(train.values()))
                for prefix, weight in train.items()
            ],
            "data.split": [share / sum(shares) for share in shares],
            "data.labels": {
                self._content(prefix): self._content(labels)
                for prefix, labels in data["labels"].items()
                if prefix in train
            },
            "data.packing": data["packing"],
            "data.isolate_documents": isolated,
            "data.mask_document_ends": isolated or data["mask_document_ends"],
            "data.fill_in_the_middle": infill if infill["rate"] else None,
            "data.tokenizer": self.fingerprints.get("tokenizer") or _normal(data["tokenizer"]),
        }

    def size(self, prefix: str) -> Any:
        """Return the bytes of a dataset's tokens."""
        return self.fingerprints["datasets"][prefix]["bytes"]

    def _content(self, prefix: str) -> Any:
        """Return what a dataset is known by."""
        if self.fingerprints:
            return self.fingerprints["datasets"][prefix]["sha256"]
        return _normal(prefix)


def _normal(path: str | None) -> str | None:
    return None if path is None else os.path.normpath(path)


def _differ(key: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    if key == "data.tokenizer" and None in (before[key], after[key]):
        return False  # nothing of one of the two depends on it
    isolation = "data.isolate_documents"
    if key == "data.mask_document_ends" and before[isolation] != after[isolation]:
        return False  # part of a difference that is named
    return bool(before[key] != after[key])


def _difference(key: str, before: _Experiment, after: _Experiment) -> str:
    section, _, name = key.partition(".")
    old, new = before.options[section][name], after.options[section][name]
    if old != new:
        return f"{key}: {old} in the checkpoint, {new} in the configuration"
    if key != "data.train":
        return f"{key}: {new} has another content than when it was saved"
    changed = [
        f"{prefix} has changed since it was saved ({before.size(prefix):,} bytes of tokens then, "
        f"{after.size(prefix):,} now)"
        for prefix, old, new in zip(after.train, before.values[key], after.values[key], strict=True)
        if old != new
    ]
    return f"{key}: " + ", ".join(changed)


def with_defaults(saved: Mapping[str, Any], kind: type[Config] = Config) -> dict[str, Any]:
    """Return a saved configuration with the defaults of the options that it does not know."""
    filled = copy.deepcopy(dict(saved))
    for path, field in walk_options(kind):
        section: Any = filled
        for part in path[:-1]:
            section = section.setdefault(part, {}) if isinstance(section, dict) else None
        default = field.get_default(call_default_factory=True)
        if isinstance(section, dict) and default is not PydanticUndefined:
            section.setdefault(path[-1], default)
    return filled


def changed_values(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return what differs between two nested mappings, as one line `PATH OLD -> NEW` each."""
    old, new = _flat(before), _flat(after)
    return [
        f"{key} {old.get(key)} -> {new.get(key)}"
        for key in sorted(new.keys() | old.keys())
        if old.get(key) != new.get(key)
    ]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested options by path; the paths are only shown, since a key may hold a dot."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        inner = _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {}
        flat.update(inner or {prefix + key: value})
    return flat
