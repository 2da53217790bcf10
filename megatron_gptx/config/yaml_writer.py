"""A `Config` as YAML text that loads back to an equal one."""

from typing import Any

import yaml

from megatron_gptx.config.schema import Config
from megatron_gptx.config.yaml_reader import TAG_PREFIX, parse_scalar

_TAGS = {str: "str", int: "int", float: "float", bool: "bool", type(None): "null"}


def dump(config: Config) -> str:
    """Return all options, defaults filled in, as YAML in schema order."""
    return dump_values(config.model_dump())


def dump_values(values: dict[str, Any]) -> str:
    """Return sections of options as YAML."""
    return yaml.dump(
        values,
        Dumper=_Dumper,
        sort_keys=False,
        default_flow_style=False,
        allow_unicode=True,
        width=100,
    )


class _Dumper(yaml.SafeDumper):
    """Quotes what this project's reader, not YAML 1.1, would take for something other than text."""

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        if kind is yaml.ScalarNode and implicit[0]:
            return f"{TAG_PREFIX}{_TAGS[type(parse_scalar(value))]}"
        return super().resolve(kind, value, implicit)

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_float(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
    # 1e16 would be read back as the integer that it equals; written out it stays a float.
    text = f"{value:.1f}" if value.is_integer() and abs(value) < 2**63 else repr(value)
    return dumper.represent_scalar(f"{TAG_PREFIX}float", text)


def _represent_list(dumper: yaml.SafeDumper, value: list[Any]) -> yaml.SequenceNode:
    return dumper.represent_sequence(f"{TAG_PREFIX}seq", value, flow_style=True)


_Dumper.add_representer(float, _represent_float)
_Dumper.add_representer(list, _represent_list)
