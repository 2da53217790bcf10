"""The first moments of a rank, before the imports that take seconds."""

import argparse
import signal
from pathlib import Path

from megatron_gptx.distributed.exit_status import FAILED
from megatron_gptx.distributed.lifetime import end_with_parent
from megatron_gptx.distributed.run_files import first_to_fail
from megatron_gptx.launcher.command_line import decode
from megatron_gptx.training.stop_signals import Stop


def main() -> None:
    """Run one rank; the launcher passes the configuration."""
    parser = argparse.ArgumentParser(description="Started by the launcher, once per rank.")
    parser.add_argument("--config", required=True, help="configuration packed by the launcher")
    run_rank(parser.parse_args().config)


def run_rank(packed: str) -> None:
    """Train one rank of a packed configuration, then leave with a status that says how it went."""
    # Before the imports below, which take longer than a launcher may live.
    end_with_parent(signal.SIGKILL)
    config = decode(packed)
    run_dir = Path(config.output.run_dir)
    stop = Stop(run_dir)
    try:
        from megatron_gptx.distributed.process import run_worker
        from megatron_gptx.training.pretrain import pretrain
    except BaseException:
        first_to_fail(run_dir, FAILED)  # else the end of the other ranks would look like a stop
        raise
    run_worker(
        lambda process: pretrain(config, process, stop), run_dir=run_dir, launch=config.launch
    )
