"""What becomes of every setting of another tool: exactly one of three things."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from megatron_gptx.config.errors import show
from megatron_gptx.convert.settings import Setting, texts

# A refused setting leaves another model, or another course of training, than the one that was
# meant; what is not needed changes nothing that is learned.
Fate = Literal["translated", "refused", "not needed"]
UNKNOWN_VARIABLE = "the script does not set this variable, or does so in branches"


class Decision(NamedTuple):
    """The fate of a setting, and why, or the options that it went into."""

    setting: Setting
    fate: Fate
    reason: str

    @property
    def line(self) -> str:
        """`FILE:LINE: name: reason`, and the value where it is lost."""
        value = f"{show(self.setting.value)}: " if self.fate == "refused" else ""
        return f"{self.setting.where}: {self.setting.name}: {value}{self.reason}"


class Ledger:
    """The settings of one translation, the options they became, and what was decided.

    A setting is decided once: a second decision is a mistake of this program.
    """

    def __init__(self, settings: Mapping[str, Setting]) -> None:
        self.settings = dict(settings)
        self.options: dict[str, Any] = {}
        self.decisions: dict[str, Decision] = {}
        self._origins: dict[str, str] = {}

    def value(self, name: str, default: Any = None) -> Any:
        """Return what a setting says, or the default where it says nothing or was refused."""
        return default if self.refused(name) else self.given(name, default)

    def given(self, name: str, default: Any = None) -> Any:
        """Return what a setting says, refused or not, or the default where it says nothing."""
        value = self.settings[name].value if name in self.settings else None
        return default if value is None else value

    def number(self, name: str, default: Any = None) -> Any:
        """Return the number above 0 that a setting says, refused or not, or the default."""
        value = self.given(name)
        return value if is_number(value) and value > 0 else default

    def open(self, name: str) -> bool:
        """Tell whether a setting was given and is not yet decided."""
        return name in self.settings and name not in self.decisions

    def rest(self) -> list[str]:
        """Return the names that are not yet decided."""
        return [name for name in self.settings if name not in self.decisions]

    def refused(self, *names: str) -> bool:
        """Tell whether any of these settings was refused."""
        found = [self.decisions[name] for name in names if name in self.decisions]
        return any(decision.fate == "refused" for decision in found)

    def translate(self, name: str, path: str, value: Any) -> None:
        """Let a setting decide an option; where another one has decided otherwise, refuse it."""
        if _unknown(value):
            self.refuse(name, UNKNOWN_VARIABLE)
        elif path in self._origins and self.options[path] != value:
            other = self.settings[self._origins[path]]
            self.refuse(name, f"contradicts {other.name} ({show(other.value)}) at {other.where}")
        else:
            self.options[path] = value
            self._origins.setdefault(path, name)
            self._decide(name, "translated", path)

    def used(self, name: str, path: str) -> None:
        """Note that a setting went into an option together with others."""
        self._decide(name, "translated", path)

    def drop(self, name: str, reason: str) -> None:
        """Note that nothing that is learned depends on a setting."""
        self._decide(name, "not needed", reason)

    def refuse(self, name: str, reason: str) -> None:
        """Note that a setting has no counterpart: the result is another model without it."""
        self._decide(name, "refused", reason)

    def _decide(self, name: str, fate: Fate, reason: str) -> None:
        assert name in self.settings, f"{name} was not given"
        assert name not in self.decisions, f"{name} is decided: {self.decisions[name]}"
        self.decisions[name] = Decision(self.settings[name], fate, reason)

    # What all tools have in common.

    def refuse_numbers(self, names: Iterable[str], above_zero: Iterable[str]) -> None:
        """Refuse settings that are reckoned with, and are no numbers, or none above 0."""
        positive = set(above_zero)
        for name in (*names, *positive):
            value = self.given(name)
            if not self.open(name) or value is None:
                continue
            if not is_number(value):
                reason = UNKNOWN_VARIABLE if _unknown(value) else "should be a number"
                self.refuse(name, reason)
            elif name in positive and value <= 0:
                self.refuse(name, "should be above 0")

    def documents(self, *, learned: bool) -> None:
        """Decide whether documents are isolated, which here restarts learned positions in each."""
        isolates = self.value("reset_attention_mask", False)
        restarts = self.value("reset_position_ids", False)
        if self.open("reset_attention_mask"):
            if learned and isolates is True and "reset_position_ids" not in self.settings:
                self.options["data.isolate_documents"] = True
                self.refuse("reset_attention_mask", "learned positions restart in documents, too")
            else:
                self.translate("reset_attention_mask", "data.isolate_documents", isolates)
        if self.open("reset_position_ids"):
            if not learned:
                self.drop("reset_position_ids", "positions have no table")
            elif restarts == isolates:
                self.drop("reset_position_ids", "data.isolate_documents decides")
            else:
                self.refuse(
                    "reset_position_ids",
                    "learned positions restart where documents are isolated, and only there",
                )

    def beginning(self) -> None:
        """Decide what a run begins with: another tool's weights cannot be read here."""
        if self.open("load"):
            if self.given("load") == self.given("save"):
                self.drop("load", "a run resumes from its own folder")
            else:
                self.refuse("load", "a run begins with new weights, or those in its own folder")

    def drop_nothing(self) -> None:
        """Drop settings without a value: there they count as not given."""
        for name in self.rest():
            if self.settings[name].value is None:
                self.drop(name, "null is the same as leaving it out")

    def same(self, names: Mapping[str, str]) -> None:
        """Translate settings whose values mean the same here."""
        for name, path in names.items():
            if self.open(name):
                value = self.settings[name].value
                if isinstance(value, list) and path != "optimizer.betas":
                    self.refuse(name, UNKNOWN_VARIABLE if _unknown(value) else "takes one value")
                else:
                    self.translate(name, path, value)

    def words(
        self,
        names: Mapping[str, tuple[str, Mapping[Any, Any]]],
        instead: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Translate settings whose words mean other words here.

        Args:
            names: of settings: the option each one decides, and its words with ours.
            instead: by option, what stands in for a word that has no counterpart.
        """
        for name, (path, known) in names.items():
            if not self.open(name):
                continue
            value = self.settings[name].value
            if not isinstance(value, list | dict) and value in known:
                self.translate(name, path, known[value])
            elif _unknown(value):
                self.refuse(name, UNKNOWN_VARIABLE)
            elif path in instead:
                self.options.setdefault(path, instead[path])
                reason = f"{path} has no such value; {instead[path]} stands in for it"
                self.refuse(name, reason)
            else:
                self.refuse(name, f"{path} has no such value")

    def only(self, names: Mapping[str, tuple[tuple[Any, ...], str]]) -> None:
        """Decide settings of which one value alone has a counterpart, and needs no option."""
        for name, (values, reason) in names.items():
            if self.open(name):
                if self.settings[name].value in values:
                    self.drop(name, "as here")
                else:
                    self.refuse(name, reason)

    def parts(self, names: Mapping[str, tuple[str, ...]]) -> None:
        """Decide details by the fate of what they belong to."""
        for name in self.rest():
            for pattern, wholes in names.items():
                if self.open(name) and fnmatchcase(name, pattern):
                    whole = next((each for each in wholes if self.refused(each)), None)
                    if whole:
                        self.refuse(name, f"a part of {whole}")
                    else:
                        self.drop(name, f"has no meaning without {' or '.join(wholes)}")

    def finish(self, not_needed: Mapping[str, str], tool: str) -> None:
        """Decide what is left: by name, or by a pattern of names."""
        for name in self.rest():
            patterns = [pattern for pattern in not_needed if fnmatchcase(name, pattern)]
            if name in not_needed:
                self.drop(name, not_needed[name])
            elif patterns:
                self.drop(name, not_needed[patterns[0]])
            else:
                self.refuse(name, f"no counterpart of this setting of {tool} is known")


def is_number(value: Any) -> bool:
    """Tell whether a value is a number, which True is not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _unknown(value: Any) -> bool:
    return any("$" in text for text in texts(value))
