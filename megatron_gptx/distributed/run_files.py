"""The small files in RUN_DIR/logs by which the ranks and the launcher of a run tell one another."""

import contextlib
import os
from pathlib import Path

# What the file `stop_request` may hold besides a signal's name.
TIME_LIMIT = "training.time_limit_minutes"
AT_ONCE = "at once"


def first_to_fail(run_dir: Path, status: int) -> bool:
    """Return whether no other rank of this launch has failed yet; the answer is yes only once.

    The launcher learns the status of the first one from the marker that this leaves.
    """
    try:
        marker = os.open(failure_marker(run_dir), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    except OSError:
        return True  # a full disk: said twice is better than not said
    with contextlib.suppress(OSError):
        os.write(marker, str(status).encode())
    os.close(marker)
    return True


def first_failure(run_dir: Path) -> int | None:
    """Return the exit status of the first rank that failed and said why, or None."""
    try:
        return int(failure_marker(run_dir).read_text())
    except (OSError, ValueError):
        return None


def leave_marker(marker: Path, text: str) -> None:
    """Leave a file that says something by being there; on a full disk it is empty, or missing."""
    with contextlib.suppress(OSError):
        marker.write_text(text)


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
