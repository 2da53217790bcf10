"""Every option of the schema, with its path: what loader, documentation and tests walk over."""

from collections.abc import Iterator
from typing import NamedTuple, get_origin

from pydantic.fields import FieldInfo

from megatron_gptx.config.schema import Config
from megatron_gptx.config.section import Section


class Option(NamedTuple):
    """One value that a user can set."""

    path: tuple[str, ...]
    field: FieldInfo


def walk_options(section: type[Section] = Config, prefix: tuple[str, ...] = ()) -> Iterator[Option]:
    """Yield all options of a section and of the sections in it, in schema order."""
    for name, field in section.model_fields.items():
        inner = subsection(field)
        if inner is None:
            yield Option((*prefix, name), field)
        else:
            yield from walk_options(inner, (*prefix, name))


def walk_sections(
    section: type[Section] = Config, prefix: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], type[Section]]]:
    """Yield a section and all sections in it, outer before inner, with their paths."""
    yield prefix, section
    for name, field in section.model_fields.items():
        inner = subsection(field)
        if inner is not None:
            yield from walk_sections(inner, (*prefix, name))


def subsection(field: FieldInfo) -> type[Section] | None:
    """Return the section that a field holds, or None where it holds a value."""
    kind = field.annotation
    # Python 3.10 calls list[int] a type as well, and issubclass then raises.
    if get_origin(kind) is None and isinstance(kind, type) and issubclass(kind, Section):
        return kind
    return None
