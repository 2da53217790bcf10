"""How a run ends: the exit statuses of ranks and of `deepy.py`."""

FINISHED = 0
FAILED = 1  # for a reason that the message and the logs name
MISTAKE = 2  # in a configuration, a dataset or a checkpoint: starting again would not help
STOPPED = 75  # as asked, with everything saved: the same command goes on
HUNG = 76  # a rank made no progress for launch.timeout_seconds
INTERRUPTED = 130  # at once, by a second Ctrl-C


class StoppedError(Exception):
    """The run ends early, as asked, with everything saved; the text says why and where."""
