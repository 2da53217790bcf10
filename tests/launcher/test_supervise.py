"""The launcher understands how ranks ended, and starts them again where that may help."""

import signal
import sys
from pathlib import Path

import pytest

from megatron_gptx.config.errors import UserError
from megatron_gptx.distributed.exit_status import FAILED, FINISHED, HUNG, MISTAKE, STOPPED
from megatron_gptx.distributed.ownership import take_over
from megatron_gptx.launcher import supervise
from megatron_gptx.launcher.devices import Placement
from megatron_gptx.launcher.stop_requests import StopRequests
from tests.runs import tiny_config

# Ends with the statuses of its arguments, one after the other; what each leaves stands before it.
SCRIPT = """
import os, pathlib, sys
arguments, run_dir = sys.argv[2:], pathlib.Path(sys.argv[1])
count = len(list(run_dir.glob("start-*")))
(run_dir / f"start-{count}").touch()
marker, _, status = arguments[count].rpartition(":")
if marker == "terminate":
    os.kill(os.getppid(), 15)
elif marker:
    (run_dir / "logs" / f".{marker}").write_text("stopped by a test")
os._exit(int(status))
"""


def command(config, placement, script, arguments) -> list[str]:
    with (Path(config.output.run_dir) / "asked").open("a") as asked:
        asked.write(f"{config.checkpoint.start} ")
    return [sys.executable, str(script), *arguments]


@pytest.fixture
def launch(tmp_path, capfd, monkeypatch):
    """Launch the script above, and return its status, how often it was started, what is shown.

    Without the launcher of a node between, whose statuses the scripts stand for.
    """
    monkeypatch.setattr(supervise, "launch_command", command)
    (tmp_path / "other.py").write_text(SCRIPT)

    def launch(
        *ends: str, restarts: int = 0, job: str | None = None, start: str = "auto"
    ) -> tuple[int, int, str]:
        options = {"launch__max_restarts": restarts, "checkpoint__start": start}
        config = tiny_config(tmp_path, tmp_path, **options)
        with StopRequests() as requests:
            status = supervise.launch(
                config,
                Placement("cpu", replicas=1, ranks=1),
                tmp_path / "other.py",
                [str(tmp_path), *ends],
                requests=requests,
                job=job,
            )
        return status, len(list(tmp_path.glob("start-*"))), "".join(capfd.readouterr())

    return launch


@pytest.mark.parametrize(
    ("end", "status", "message"),
    [
        ("finished:0", FINISHED, "starting 1 rank(s)"),
        ("0", FAILED, "the ranks ended before the run was finished"),
        ("1", FAILED, ""),
        ("2", MISTAKE, ""),
        ("stopped:75", STOPPED, "stopped by a test"),
        # The launcher of a node returns 1 where a signal ended it.
        ("stopped:1", STOPPED, "stopped by a test"),
        # A peer's kill counts more than what a rank that was still starting left.
        ("stopped:137", 137, "ended by SIGKILL"),
        ("stopped:2", MISTAKE, ""),
        ("76", HUNG, ""),
    ],
)
def test_the_end_of_the_ranks_is_understood(launch, end, status, message):
    ended, starts, shown = launch(end)
    assert (ended, starts) == (status, 1)
    assert message in shown


@pytest.mark.parametrize(
    ("status", "first", "ended", "said"),
    [
        (129, "76", HUNG, "the connection to a host was lost"),
        (129, "2", MISTAKE, "the connection to a host was lost"),
        (129, "1", FAILED, "the connection to a host was lost"),
        (129, "", FAILED, "the connection to a host was lost"),
        (1, "76", HUNG, ""),
        (137, "1", 137, "ended by SIGKILL"),
    ],
)
def test_over_several_hosts_the_first_rank_that_failed_knows_why(
    tmp_path, capsys, status, first, ended, said
):
    (tmp_path / "logs").mkdir()
    if first:
        (tmp_path / "logs" / ".failed").write_text(first)
    assert supervise._outcome(status, tmp_path, StopRequests(), several=True) == ended
    shown = capsys.readouterr().err
    assert said in shown
    assert "SIGHUP" not in shown


@pytest.mark.parametrize("status", ["0", "1", "76", "134", "137", "139"])
def test_ranks_that_crash_or_hang_are_started_again(launch, status):
    ended, starts, shown = launch(status, status, "finished:0", restarts=3)
    assert (ended, starts) == (FINISHED, 3)
    assert "restart 2 of 3 after status" in shown


@pytest.mark.parametrize("restarts", [0, 1])
def test_ranks_are_not_started_more_often_than_allowed(launch, restarts):
    ended, starts, shown = launch("137", "137", "finished:0", restarts=restarts)
    assert (ended, starts) == (137, 1 + restarts)
    assert shown.count("restart 1 of 1") == restarts


@pytest.mark.parametrize("end", ["finished:0", "2", "stopped:75", "130"])
def test_ranks_that_end_for_good_are_not_started_again(launch, end):
    ended, starts, shown = launch(end, "finished:0", restarts=3)
    assert (ended, starts) == (int(end.rpartition(":")[2]), 1)
    assert "restart" not in shown


@pytest.mark.parametrize(
    ("start", "job", "asked"),
    [
        ("auto", None, "auto intact intact "),
        ("intact", "17", "intact intact intact "),
        # The first ranks crash before they have looked for checkpoints, the second ones behind it.
        ("fresh", None, "fresh fresh intact "),
        ("fresh", "17", "auto intact intact "),
        ("fresh", "18", "fresh fresh intact "),
        ("step-2", None, "step-2 step-2 intact "),
        ("step-2", "17", "auto intact intact "),
    ],
)
def test_ranks_that_began_afresh_go_on_from_their_own_checkpoints(
    launch, tmp_path, start, job, asked
):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / ".fresh").write_text("17")
    assert launch("1", "fresh:1", "finished:0", restarts=2, start=start, job=job)[1] == 3
    assert (tmp_path / "asked").read_text() == asked


def test_a_job_that_has_not_begun_afresh_yet_takes_up_no_checkpoint(launch, tmp_path):
    launch("finished:0", start="fresh", job="17")
    assert (tmp_path / "asked").read_text() == "fresh "


def test_a_crash_after_a_signal_to_the_launcher_is_the_end(launch):
    ended, starts, shown = launch("terminate:1", "finished:0", restarts=3)
    assert (ended, starts) == (FAILED, 1)
    assert "restart" not in shown


def test_a_launch_that_is_asked_to_stop_before_it_starts_starts_nothing(tmp_path, capfd):
    config = tiny_config(tmp_path, tmp_path)
    with StopRequests() as requests:
        signal.raise_signal(signal.SIGTERM)
        status = supervise.launch(
            config, Placement("cpu", 1, 1), tmp_path / "none.py", [], requests=requests
        )
    assert status == STOPPED
    assert "stopped by SIGTERM before any rank was started" in capfd.readouterr().out


def test_the_request_of_an_earlier_launch_is_forgotten(launch, tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / ".stop").touch()
    launch("finished:0")
    assert not (tmp_path / "logs" / ".stop").exists()


def test_a_launch_into_the_folder_of_another_one_is_refused_and_changes_nothing(launch, tmp_path):
    (tmp_path / "logs").mkdir()
    names = (".failed", ".finished", ".stopped", ".stop")
    with take_over(tmp_path):
        for name in names:
            (tmp_path / "logs" / name).write_text(name)
        with pytest.raises(UserError, match="in use by another launch"):
            launch("finished:0")
    assert [(tmp_path / "logs" / name).read_text() for name in names] == list(names)
    assert not list(tmp_path.glob("start-*"))


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_to_the_launcher_reaches_the_ranks_by_its_name(tmp_path, signum):
    (tmp_path / "logs").mkdir()
    with StopRequests() as requests:
        requests.pass_on(tmp_path)
        signal.raise_signal(signum)
    assert requests.reasons == [signum.name]
    assert not requests.at_once
    assert (tmp_path / "logs" / ".stop").read_text() == signum.name


def test_a_time_limit_reaches_the_ranks_by_its_option(tmp_path):
    (tmp_path / "logs").mkdir()
    with StopRequests() as requests:
        requests.pass_on(tmp_path)
        requests.limit(1e-5)
        while not requests.reasons:
            signal.pause()
    assert requests.reasons == ["training.time_limit_minutes"]
    assert (tmp_path / "logs" / ".stop").read_text() == "training.time_limit_minutes"


def test_requests_leave_the_handlers_of_signals_alone():
    before = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    with StopRequests():
        pass
    assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize(
    ("signum", "reasons"),
    [(signal.SIGINT, []), (signal.SIGHUP, []), (signal.SIGTERM, ["SIGTERM"])],
)
def test_a_signal_that_a_shell_made_this_process_ignore_means_other_ones(signum, reasons):
    before = signal.signal(signum, signal.SIG_IGN)
    try:
        with StopRequests() as requests:
            signal.raise_signal(signum)
        assert requests.reasons == reasons
        assert signal.getsignal(signum) == signal.SIG_IGN
    finally:
        signal.signal(signum, before)


def test_a_request_that_cannot_be_written_ends_the_ranks_at_once(tmp_path):
    ended = []
    with StopRequests() as requests:
        (tmp_path / "logs").mkdir()
        requests.pass_on(tmp_path)
        requests.end_ranks = lambda: ended.append(True)
        (tmp_path / "logs").rmdir()
        signal.raise_signal(signal.SIGTERM)
    assert ended == [True]
    assert requests.at_once


def test_only_a_second_ctrl_c_is_in_a_hurry(tmp_path):
    ended = []
    with StopRequests() as requests:
        (tmp_path / "logs").mkdir()
        requests.pass_on(tmp_path)
        requests.end_ranks = lambda: ended.append(True)
        for signum in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(signum)
        assert (ended, (tmp_path / "logs" / ".stop").read_text()) == ([], "SIGTERM")
        signal.raise_signal(signal.SIGINT)
    assert (ended, (tmp_path / "logs" / ".stop").read_text()) == ([True], "at once")
