"""A secret in the environment of a run is found nowhere else, while it runs and afterwards."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_gptx.config.errors import ConfigError, UserError
from megatron_gptx.config.load import load
from megatron_gptx.config.secrets import names_secret
from megatron_gptx.distributed.exit_status import FAILED, FINISHED
from megatron_gptx.launcher.hosts import hosts_environment
from tests.launches import Place

CANARY = "canary7f3c9b2e51d84a60canary7f3c9b2e51d8"
NAMES = (
    "WANDB_API_KEY",
    "HF_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "COMET_API_KEY",
    "NCCL_FAKE_SECRET",
)


class CommandLines(threading.Thread):
    """Collects the command line of every process there is, until told to stop."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[bytes] = set()
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.05):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    self.found.add(path.read_bytes())
                except OSError:
                    continue

    def __enter__(self) -> "CommandLines":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join()


@pytest.fixture
def place(tmp_path) -> Iterator[Place]:
    place = Place(
        tmp_path,
        logging__wandb=True,
        logging__tensorboard=True,
        checkpoint__interval=2,
        deepspeed={"dump_state": True},
    )
    yield place
    place.clear()


def files_with(folder: Path, text: str) -> list[Path]:
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and (text.encode() in path.read_bytes() or text in str(path))
    ]


# With a traceback, and behind the first checkpoint.
CRASH = ("error:at=step:step>=2:rank=1", FAILED)
RESUME = ("", FINISHED)


@pytest.mark.parametrize(
    "launches", [[CRASH], pytest.param([CRASH, RESUME], marks=pytest.mark.extended)]
)
def test_a_secret_is_in_no_log_no_command_line_no_file_and_no_checkpoint(place, launches):
    variables = dict.fromkeys(NAMES, CANARY)
    with CommandLines() as lines:
        for fault, status in launches:
            # wandb would refuse a key that is none, and leave the run without it.
            done = place.launch("train.py", **variables, GPTX_FAULT=fault, WANDB_MODE="offline")
            assert done.status == status, done.shown + done.said
            assert CANARY not in done.shown + done.said
    run_dir = place.folder / "run"
    assert (run_dir / "checkpoints" / "latest").exists()
    assert list(run_dir.glob("wandb/offline-run-*/*.wandb")), "wandb has recorded nothing"
    assert list(run_dir.glob("tensorboard/*"))
    assert len([line for line in lines.found if b"train.py" in line]) >= 3
    assert [line for line in lines.found if CANARY.encode() in line] == []
    assert files_with(place.folder, CANARY) == []


def test_the_search_for_a_secret_would_find_it(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_text(f"x{CANARY}x")
    (tmp_path / CANARY).touch()
    assert len(files_with(tmp_path, CANARY)) == 2


@pytest.mark.parametrize("key", ["wandb_api_key", "comet.api_key", "x.y.auth_token", "password"])
def test_a_configuration_with_a_key_for_a_secret_is_refused_without_showing_it(place, key):
    with pytest.raises(ConfigError, match="hand secrets over in the environment") as caught:
        load([place.config_file], [f"deepspeed.{key}=hidden"])
    message = str(caught.value).replace(f"--set deepspeed.{key}=hidden", "")
    assert "hidden" not in message


def test_deepspeed_hands_no_secret_to_other_nodes():
    variables = {**dict.fromkeys(NAMES, CANARY), "NCCL_DEBUG": "INFO", "PYTHONPATH": "/a b"}
    kept = hosts_environment(variables)
    assert {name for name in kept if name.startswith(("MLFLOW", "NCCL", "PYTHON"))} == {
        "NCCL_DEBUG",
        "PYTHONPATH",
    }


def test_a_secret_in_deepspeeds_file_of_variables_is_refused_without_showing_it(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".deepspeed_env").write_text(f"NCCL_DEBUG=INFO\nWANDB_API_KEY={CANARY}\n")
    with pytest.raises(UserError, match=r"_env:2: WANDB_API_KEY is a secret") as caught:
        hosts_environment(dict(os.environ))
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize("name", [*NAMES, "api_key", "GITHUB_TOKEN", "db_password", "credentials"])
def test_names_of_secrets_are_recognised(name):
    assert names_secret(name)


@pytest.mark.parametrize("name", ["tokens", "keys", "monkey", "num_tokens", "PYTHONPATH", "author"])
def test_other_names_are_none(name):
    assert not names_secret(name)
