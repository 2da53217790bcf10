"""What a checkpoint was saved with, beside what a run asks for now: values, not spellings."""

import copy
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticUndefined

from megatron_gptx.checkpoint.layout import Checkpoint, CheckpointError
from megatron_gptx.config.messages import describe_error, dotted
from megatron_gptx.config.model import ModelConfig
from megatron_gptx.config.options import walk_options
from megatron_gptx.config.schema import Config

# Options of the model that no saved tensor depends on.
_FREE = ("dropout", "attention.dropout", "init_std")
# What speaks of one launch and not of what is learned.
_OF_A_LAUNCH = ("launch.", "checkpoint.start", "checkpoint.accept_changes")


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
    saved = _saved_model(checkpoint, type(model))
    free = (*_FREE, "seq_length") if any_seq_length and model.position != "learned" else _FREE
    before, after = _flat(saved.model_dump()), _flat(model.model_dump())
    meant_before, meant_after = (_flat(each.resolved.model_dump()) for each in (saved, model))
    differing = [
        f"{key}: {before[key]} in the checkpoint, {after[key]} in the configuration"
        for key in sorted(after)
        if before[key] != after[key] and meant_before[key] != meant_after[key] and key not in free
    ]
    if differing:
        raise CheckpointError(
            f"{checkpoint.path} holds another model:\n  model." + "\n  model.".join(differing)
        )


def _saved_model(checkpoint: Checkpoint, kind: type[ModelConfig]) -> ModelConfig:
    """Return the model of a checkpoint, the defaults of younger options filled in."""
    try:
        return kind.model_validate(checkpoint.manifest["config"]["model"])
    except ValidationError as error:
        problems = [
            f"model.{dotted(found['loc'])}: "
            + (
                f"{found['input']} in the checkpoint, an option that this version does not have"
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
    saved = with_defaults(checkpoint.manifest["config"], type(config))
    changes = changed_values(saved, config.model_dump())
    return [change for change in changes if not change.startswith(_OF_A_LAUNCH)]


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
