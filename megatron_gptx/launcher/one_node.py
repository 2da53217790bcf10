"""Run a script on all ranks of one node: `python one_node.py DEVICES PORT SCRIPT [ARGUMENT ...]`.

One rank for each of the devices, which commas separate. It gives ranks what DeepSpeed's launcher of
a node gives them, and ends them as that does, but starts earlier: it imports no torch.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

# How long ranks that are asked to end may take.
PATIENCE_SECONDS = 30
POLL_SECONDS = 0.1


def main(devices: str, port: str, *worker: str) -> int:
    """Run the ranks until all have finished, and return the status of the first one that has not.

    It is -N for a rank that signal N has ended, and 1 where this process was asked to end.
    """
    asked: list[int] = []
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda signum, _: asked.append(signum))
    count = str(devices.count(",") + 1)
    common = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": count,
        "LOCAL_SIZE": count,
        "CROSS_RANK": "0",
        "CROSS_SIZE": "1",
        "CUDA_VISIBLE_DEVICES": devices,
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-u", *worker],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(int(count))
    ]
    while not asked:
        statuses = [rank.poll() for rank in ranks]
        failed = [status for status in statuses if status]
        if failed:
            _end(ranks)
            return failed[0]
        if None not in statuses:
            return 0
        time.sleep(POLL_SECONDS)
    _end(ranks)
    return 1


def _end(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask ranks to end, and kill those that do not in time."""
    for rank in ranks:
        rank.terminate()
    deadline = time.monotonic() + PATIENCE_SECONDS
    for rank in ranks:
        try:
            rank.wait(max(0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            rank.kill()
            rank.wait()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
