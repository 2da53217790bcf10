"""Commands as a person types them, without the process around: most tests are not about that."""

from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import pytest


class Done(NamedTuple):
    """A finished command, with the names of `subprocess`."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run(capsys) -> Callable[..., Done]:
    """Run a command of a module and return how it ended."""

    def run(command: ModuleType, *arguments: object) -> Done:
        capsys.readouterr()
        try:
            status = command.main([*map(str, arguments)])
        except SystemExit as ended:  # of the parser
            status = ended.code
        done = Done(status, *capsys.readouterr())
        assert "Traceback" not in done.stderr
        return done

    return run
