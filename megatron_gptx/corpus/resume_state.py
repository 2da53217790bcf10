"""What became of the input so far, on disk so that a run can be taken up again."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megatron_gptx.config.errors import UserError
from megatron_gptx.corpus.encode import Part
from megatron_gptx.corpus.read_texts import Rejected
from megatron_gptx.dataset.manifest import read_manifest, write_manifest
from megatron_gptx.dataset.writer import Extent

_EXAMPLES = 100  # rejected lines named in the manifest


@dataclass(frozen=True)
class Summary:
    """What became of the input. `rejected` counts by reason; examples are PATH:LINE: REASON."""

    num_documents: int = 0
    num_tokens: int = 0
    max_id: int = -1
    text_bytes: int = 0
    empty: int = 0
    repaired: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    rejected_examples: list[str] = field(default_factory=list)

    @property
    def tokens_per_byte(self) -> float:
        """How many tokens a byte of text takes."""
        return self.num_tokens / max(self.text_bytes, 1)

    def plus(self, part: Part, first_line: int) -> "Summary":
        """Return what it is with a part, whose lines follow `first_line` lines of its file."""
        account = part.account
        room = _EXAMPLES - len(self.rejected_examples)
        examples = [_describe(entry, first_line) for entry in account.rejected[:room]]
        return Summary(
            num_documents=self.num_documents + part.num_documents,
            num_tokens=self.num_tokens + part.num_tokens,
            max_id=max(self.max_id, part.max_id),
            text_bytes=self.text_bytes + account.text_bytes,
            empty=self.empty + account.empty,
            repaired=self.repaired + account.repaired,
            rejected=dict((Counter(self.rejected) + account.reasons).most_common()),
            rejected_examples=self.rejected_examples + examples,
        )


@dataclass(frozen=True)
class State:
    """How much of a dataset is done: the first `parts` parts, and what they amount to."""

    parts: int = 0
    first_line: int = 0
    extent: Extent = field(default_factory=Extent)
    summary: Summary = field(default_factory=Summary)


def write_state(path: Path, same: dict[str, Any], state: State) -> None:
    """Write a state, with what must be the same in the run that takes it up."""
    write_manifest(path, {**same, "state": asdict(state)})


def read_state(path: Path, same: dict[str, Any]) -> State:
    """Return the state that an earlier run of the same kind wrote, or an empty one."""
    try:
        found = read_manifest(path)
        if found is None or any(found.get(name) != same[name] for name in same):
            return State()
        state = found["state"]
        extent, summary = Extent(*state["extent"]), Summary(**state["summary"])
        return State(state["parts"], state["first_line"], extent, summary)
    except (UserError, KeyError, TypeError):  # damaged, or of another version
        return State()


def _describe(entry: Rejected, first_line: int) -> str:
    where = entry.path if entry.line is None else f"{entry.path}:{first_line + entry.line}"
    return f"{where}: {entry.reason}"
