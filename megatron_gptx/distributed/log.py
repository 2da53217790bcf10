"""Where a rank's words go: its own log file, and the console for the few that matter to people."""

import os
import sys
from pathlib import Path
from typing import TextIO

# What the file `stop_request` may hold besides a signal's name.
TIME_LIMIT = "training.time_limit_minutes"
AT_ONCE = "at once"


def redirect_output(path: Path) -> TextIO:
    """Send this process's stdout and stderr, libraries' included, to the end of a file.

    Returns:
        What stdout was before: the stream that people see.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    console = os.fdopen(os.dup(1), "w", buffering=1)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    return console


def first_to_fail(run_dir: Path) -> bool:
    """Return whether no other rank of this launch has failed yet; the answer is yes only once."""
    try:
        os.close(os.open(failure_marker(run_dir), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    except OSError:
        return True  # a full disk: said twice is better than not said
    return True


def finished_marker(run_dir: Path) -> Path:
    """Return the file that rank 0 leaves when all ranks have finished; a launch removes it."""
    return run_dir / "logs" / ".finished"


def failure_marker(run_dir: Path) -> Path:
    """Return the file whose creator is the first rank that failed; a launch removes it."""
    return run_dir / "logs" / ".failed"


def stopped_marker(run_dir: Path) -> Path:
    """Return the file in which the ranks say how they stopped early; a launch removes it."""
    return run_dir / "logs" / ".stopped"


def fresh_marker(run_dir: Path) -> Path:
    """Return the file that says that `checkpoint.start: fresh` has found no checkpoint here.

    It is written anew by each run that begins so, and holds the number of its SLURM job, if any.
    """
    return run_dir / "logs" / ".fresh"


def stop_request(run_dir: Path) -> Path:
    """Return the file that makes every rank stop early; it holds the reason. A launch removes it.

    Unlike a signal it reaches the ranks of all nodes, whatever started them.
    """
    return run_dir / "logs" / ".stop"
