"""What a script's variables may hold behind an `if` or a `case`, whichever branch is taken."""

from typing import NamedTuple

CONDITIONS = ("if", "case", "elif")  # a command of its own follows: no branch, but its condition
_BRANCH_ENDS = ("elif", "else", ";;")
_ENDS = ("fi", "esac")


class _Block(NamedTuple):
    before: dict[str, str]
    ends: list[dict[str, str]]  # the variables at the end of each branch


class Branches:
    """Keeps the variables of branches apart, and joins them behind the block.

    A variable that two branches set differently, or one branch otherwise than it was before, has
    no known value: `$NAME` stands for it. One that was not set before is what a branch makes it.
    """

    def __init__(self, variables: dict[str, str]) -> None:
        self.variables = variables
        self.blocks: list[_Block] = []

    @property
    def inside(self) -> bool:
        """Whether what is read stands in a branch."""
        return bool(self.blocks)

    def note(self, word: str) -> bool:
        """Tell whether a command's first word opens, divides or closes a block, and do so."""
        if word in ("if", "case"):
            self.blocks.append(_Block(dict(self.variables), []))
        elif word in _BRANCH_ENDS and self.blocks:
            self._end_branch()
        elif word in _ENDS and self.blocks:
            self._end_branch()
            self._join(self.blocks.pop())
        else:
            return False
        return True

    def close(self) -> None:
        """Close what a script leaves open."""
        while self.blocks:
            self.note("fi")

    def _end_branch(self) -> None:
        block = self.blocks[-1]
        block.ends.append(dict(self.variables))
        self.variables.clear()
        self.variables.update(block.before)

    def _join(self, block: _Block) -> None:
        for name in {name for end in block.ends for name in end}:
            before = block.before.get(name)
            values = {end[name] for end in block.ends if end.get(name, before) != before}
            if before:
                values.add(before)
            if values:
                self.variables[name] = values.pop() if len(values) == 1 else f"${name}"
