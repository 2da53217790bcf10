"""As much of a configuration as could be read, so that its other checks need not wait."""

from collections.abc import Collection
from typing import Annotated, Any

from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

from megatron_gptx.config.options import subsection
from megatron_gptx.config.section import Section
from megatron_gptx.config.yaml_reader import KeyPath


def partial_section(
    kind: type[Section], values: Any, unread: Collection[KeyPath], path: KeyPath = ()
) -> Any:
    """Return a section without the options that could not be read: to ask for them raises.

    Args:
        kind: the section.
        values: its options, of which those that are not `unread` are valid.
        unread: paths of options, sections and keys that are wrong.
        path: where the section is.
    """
    section = kind.model_construct()
    for name, field in kind.model_fields.items():
        inner = (*path, name)
        nested = subsection(field)
        given = isinstance(values, dict) and name in values
        if inner in unread or (nested is None and any(p[: len(inner)] == inner for p in unread)):
            section.__dict__.pop(name, None)
        elif nested is not None:
            below = values[name] if given else {}
            section.__dict__[name] = partial_section(nested, below, unread, inner)
        elif given:
            section.__dict__[name] = _as_option(field, values[name])
    return section


def _as_option(field: FieldInfo, value: Any) -> Any:
    """Return a valid value as the option holds it: a path with its `~` replaced, for one."""
    parts = (field.annotation, *field.metadata)
    kind: Any = Annotated[parts] if field.metadata else field.annotation
    return TypeAdapter(kind, config={"strict": True}).validate_python(value)
