"""A job of SLURM's that is started again where it stopped."""

import os
import shutil
import subprocess
import sys

from megatron_gptx.config.errors import UserError


def slurm_job() -> str:
    """Return the number of the job that this process belongs to.

    Raises:
        UserError: it belongs to none, or SLURM's `scontrol` is not installed here.
    """
    job = os.environ.get("SLURM_JOB_ID", "")
    if not (job.isascii() and job.isdigit()):
        found = repr(job) if job else "not set"
        raise UserError(
            f"--requeue starts a SLURM job again, but SLURM_JOB_ID is {found}: use it in a script "
            "that sbatch has started"
        )
    if shutil.which("scontrol") is None:
        raise UserError("--requeue needs SLURM's program scontrol, which is not installed here")
    return job


def started_before() -> bool:
    """Return whether SLURM has started this job before, and starts it again for any reason."""
    return os.environ.get("SLURM_RESTART_COUNT", "") not in ("", "0")


def requeue(job: str) -> bool:
    """Ask SLURM to start a job again; say and return how that went: all is saved in either case."""
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.stderr.write(f"error: scontrol requeue {job} failed: {done.stderr.strip()}\n")
    else:
        sys.stdout.write(f"SLURM will start job {job} again\n")
    return done.returncode == 0
