"""Metrics reach their writers, and a broken writer never stops a run."""

import base64
import json
import subprocess
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest

from megatron_gptx.training.metric_writers import (
    MetricsFile,
    Optional,
    TensorBoard,
    WeightsAndBiases,
    open_writers,
)
from tests.runs import tiny_config

ROW = {"step": 3, "loss": 1.5}


class Broken:
    """Fails at a chosen call."""

    def __init__(self, *, opening: bool) -> None:
        if opening:
            raise OSError("no route to host")

    def write(self, row: dict[str, float]) -> None:
        raise OSError("disk quota exceeded")

    def close(self) -> None:
        raise AssertionError("a dropped writer is not used again")


@pytest.mark.parametrize("opening", [True, False])
def test_a_writer_that_fails_is_dropped_and_says_so(opening, capsys):
    writer = Optional("wandb", lambda: Broken(opening=opening))
    writer.write(ROW)
    writer.write(ROW)
    writer.close()
    said = capsys.readouterr().err
    assert said.count("wandb is switched off") == 1
    assert ("no route" if opening else "quota") in said


def test_the_metrics_file_drops_the_future_and_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    writer = MetricsFile(path, resumed_step=2, say=print)
    writer.write(ROW)
    writer.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
    assert json.loads(path.read_text().splitlines()[-1]) == ROW


STRANGE = {
    "another encoding": "{'loß': 1}".encode("latin-1"),
    "zeros of a crash": b"\0" * 100,
    "a step of text": b'{"step": "2"}',
    "no step": b'{"loss": 2}',
    "a list": b"[1, 2]",
    "a number": b"7",
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("line", STRANGE)
def test_a_line_that_is_no_row_costs_no_other_row_and_no_resume(tmp_path, capsys, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + STRANGE[line] + b'\n{"step": 2}\n')
    writer = MetricsFile(path, resumed_step=2, say=print)
    writer.write(ROW)
    writer.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
    assert capsys.readouterr().err == f"{path}: 1 of 3 lines were no rows, and are gone\n"


def test_going_back_in_the_metrics_file_takes_no_room(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    file = path.stat().st_ino
    MetricsFile(path, resumed_step=2, say=print).close()
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    assert path.stat().st_ino == file  # it was not written anew


def test_numbers_that_json_does_not_know_become_null(tmp_path):
    writer = MetricsFile(tmp_path / "metrics.jsonl", resumed_step=0, say=print)
    writer.write({"step": 1, "grad_norm": float("inf"), "loss": float("nan")})
    writer.close()
    row = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert row == {"step": 1, "grad_norm": None, "loss": None}


def test_tensorboard_gets_every_metric(tmp_path):
    writer = TensorBoard(tmp_path, resumed_step=0)
    writer.write(ROW)
    writer.close()
    assert shown(tmp_path) == [(3, 1.5)]


def shown(folder: Path) -> list[tuple[int, float]]:
    """Return what TensorBoard draws of the loss."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in events.Scalars("loss")]


def test_tensorboard_shows_no_step_twice_and_no_future_that_was_given_up(tmp_path):
    # Stopped behind the checkpoint of step 4, resumed; gone back to step 2; then begun afresh.
    for resumed_step, last, loss in ((0, 8, 1.0), (4, 6, 2.0), (2, 3, 3.0)):
        writer = TensorBoard(tmp_path, resumed_step=resumed_step)
        for step in range(resumed_step + 1, last + 1):
            writer.write({"step": step, "loss": loss})
        writer.close()
    assert shown(tmp_path) == [(1, 1.0), (2, 1.0), (3, 3.0)]
    writer = TensorBoard(tmp_path, resumed_step=0)
    writer.write({"step": 1, "loss": 4.0})
    writer.close()
    assert shown(tmp_path) == [(1, 4.0)]


@pytest.fixture
def wandb(monkeypatch):
    """Forget what wandb has read of this process's environment, and give it none."""
    import wandb

    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_RUN_ID", "WANDB_NAME", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", "/dev/null")
    wandb.teardown()
    yield wandb
    wandb.teardown()


def recorded(run_dir: Path) -> list[bytes]:
    """Return what wandb has recorded of each start, in their order."""
    files = sorted(run_dir.glob("wandb/*run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    return [path.read_bytes() for path in files]


def test_wandb_works_offline_where_it_has_no_key(tmp_path, wandb, capsys):
    writer = WeightsAndBiases(tiny_config(Path("corpus"), tmp_path), resumed_step=0)
    writer.write(ROW)
    writer.close()
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert "wandb is offline: No API key configured" in capsys.readouterr().err


def test_wandb_is_offline_where_it_is_told_to_be(tmp_path, wandb, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb.teardown()
    writer = WeightsAndBiases(tiny_config(Path("corpus"), tmp_path), resumed_step=0)
    writer.close()
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert "wandb is offline: " not in capsys.readouterr().err


def test_all_starts_of_a_run_are_one_wandb_run_and_lose_no_row(tmp_path, wandb):
    from wandb.proto.wandb_internal_pb2 import MetricRecord

    options = {"wandb_name": "first try", "wandb_group": "sweep 7", "wandb_tags": ["alibi", "1B"]}
    config = tiny_config(
        Path("corpus"), tmp_path, **{f"logging__{key}": value for key, value in options.items()}
    )
    # Killed at step 8, resumed from step 4: steps 5 to 8 come again.
    for resumed_step, loss in ((0, 0.125), (4, 0.375)):
        writer = WeightsAndBiases(config, resumed_step=resumed_step)
        for step in range(resumed_step + 1, 9):
            writer.write({"step": step, "loss": loss + step})
        shown = writer.run.name, writer.run.group, list(writer.run.tags)
        assert shown == tuple(options.values())
        # It counts rows, for after going back a step is below the last one's.
        assert writer.run.step == 8 - resumed_step
        writer.close()
        ended_at = int(time.time())
        while int(time.time()) == ended_at:  # wandb names its folders by seconds
            time.sleep(0.05)
    number = (tmp_path / "wandb-id").read_text().strip().encode()
    axis = MetricRecord(glob_name="*", step_metric="step").SerializeToString()
    first, second = recorded(tmp_path)
    # Half of what the watchdog gives, for ending one and beginning another.
    assert writer.run.settings.finish_timeout == writer.run.settings.init_timeout == 15
    for record in (first, second):
        assert number in record
        assert axis in record
    assert all(str(0.125 + step).encode() in first for step in range(1, 9))
    assert all(str(0.375 + step).encode() in second for step in range(5, 9))


def test_a_run_that_begins_afresh_is_another_wandb_run(tmp_path, wandb):
    config = tiny_config(Path("corpus"), tmp_path)
    WeightsAndBiases(config, resumed_step=0).close()
    first = (tmp_path / "wandb-id").read_text()
    WeightsAndBiases(config, resumed_step=4).close()
    assert (tmp_path / "wandb-id").read_text() == first
    (tmp_path / "wandb-id").write_bytes(b"\xff/../x")  # damaged
    WeightsAndBiases(config, resumed_step=4).close()
    second = (tmp_path / "wandb-id").read_text()
    assert second.strip().isalnum()
    WeightsAndBiases(config, resumed_step=0).close()
    assert len({first, second, (tmp_path / "wandb-id").read_text()}) == 3


class Refusing(BaseHTTPRequestHandler):
    """A server that notes who asks, and lets nobody in."""

    asked: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        self.asked.append(self.headers.get("Authorization", ""))
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *words: object) -> None:
        pass


def test_the_key_of_wandb_login_is_used_and_a_refusal_ends_no_run(
    tmp_path, wandb, monkeypatch, capsys
):
    key = "k" * 40
    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        host = f"127.0.0.1:{server.server_port}"
        (tmp_path / "netrc").write_text(f"machine {host}\n  login user\n  password {key}\n")
        (tmp_path / "netrc").chmod(0o600)
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://{host}")
        wandb.teardown()
        (tmp_path / "run").mkdir()
        writer = WeightsAndBiases(tiny_config(Path("corpus"), tmp_path / "run"), resumed_step=0)
        writer.write(ROW)
        writer.close()
        server.shutdown()
    assert base64.b64encode(f"api:{key}".encode()).decode() in Refusing.asked[0]
    assert "wandb is offline: " in capsys.readouterr().err
    assert list(tmp_path.glob("run/wandb/offline-run-*/*.wandb"))
    texts = [path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not any(key.encode() in text for text in texts)


def test_writers_follow_the_configuration(tmp_path):
    plain = open_writers(tiny_config(Path("corpus"), tmp_path), resumed_step=0, say=print)
    assert [type(writer) for writer in plain] == [MetricsFile]
    both = open_writers(
        tiny_config(Path("corpus"), tmp_path, logging__tensorboard=True),
        resumed_step=0,
        say=print,
    )
    assert [type(writer) for writer in both] == [MetricsFile, Optional]
    for writer in (*plain, *both):
        writer.close()


@pytest.fixture
def full_disk(tmp_path):
    """Mount a disk of its own; yield a file on it that leaves no room."""
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted here")
    with pytest.raises(OSError, match="No space left"), (tmp_path / "filler").open("wb") as file:
        file.write(bytes(1 << 20))
    yield tmp_path / "filler"
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_rows_that_find_no_room_wait_and_are_all_there_in_the_end(full_disk):
    path, said = full_disk.with_name("metrics.jsonl"), []
    writer = MetricsFile(path, resumed_step=0, say=said.append)
    for step in (1, 2, 3):
        writer.write({"step": step})
    assert path.read_bytes() == b""
    full_disk.unlink()
    writer.write({"step": 4})
    writer.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4]
    assert said == [
        f"no space left for {path}: its rows wait until there is",
        f"{path} has all its rows again",
    ]


def test_rows_that_never_find_room_end_no_run(full_disk):
    path, said = full_disk.with_name("metrics.jsonl"), []
    writer = MetricsFile(path, resumed_step=0, say=said.append)
    writer.write(ROW)
    writer.close()
    assert said[1:] == [f"{path} lacks its last 1 rows: no space left"]
