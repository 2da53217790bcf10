"""The image's files refer to what exists, and its Python step installs what is pinned."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
INSTALL = ROOT / "docker" / "install.sh"
ENTRY = ROOT / "docker" / "entrypoint.sh"


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions as (keyword, rest) with continued lines joined."""
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#")).replace("\\\n", " ")
    return [
        (word, rest) for word, _, rest in (line.partition(" ") for line in text.split("\n") if line)
    ]


def rest_of(keyword: str) -> list[str]:
    return [rest for word, rest in instructions() if word == keyword]


def steps() -> set[str]:
    """Return the steps that docker/install.sh knows."""
    return set(
        re.findall(r"^([a-z]+)\(\) \{", INSTALL.read_text(encoding="utf-8"), flags=re.MULTILINE)
    )


def install(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run docker/install.sh in an environment that holds nothing but the given variables."""
    kept = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
    command = ["bash", str(INSTALL), *arguments]
    return subprocess.run(
        command, env=kept | environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("script", sorted([*ROOT.glob("docker/*.sh"), ROOT / ".ci" / "run"]))
def test_a_script_parses_stops_at_errors_and_can_be_executed(script):
    subprocess.run(["bash", "-n", script], check=True)
    assert "set -euo pipefail" in script.read_text(encoding="utf-8")
    assert os.access(script, os.X_OK)


def test_everything_the_image_copies_exists_and_is_sent_to_the_build():
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    copied = []
    for line in rest_of("COPY"):
        *sources, _ = [word for word in line.split() if not word.startswith("--")]
        copied += sources
    assert "constraints.txt" in copied
    assert "." in copied
    for source in copied:
        assert (ROOT / source).exists()
        assert source not in ignored


def test_the_image_runs_each_step_of_the_script_once_and_in_order():
    ran = [line.removeprefix("docker/install.sh ") for line in rest_of("RUN")]
    assert ran == ["system", "requirements", "apex", "user"]
    assert set(ran) == steps()


def test_the_image_has_a_pinned_base_and_a_pinned_apex():
    arguments = dict(line.partition("=")[::2] for line in rest_of("ARG"))
    assert re.fullmatch(
        r"nvidia/cuda:\d+\.\d+\.\d+-cudnn-devel-ubuntu\d+\.\d+", arguments["BASE_IMAGE"]
    )
    assert re.fullmatch(r"[0-9a-f]{40}", arguments["APEX_REF"])
    assert "PIP_INDEX_URL" in arguments


def test_every_variable_of_the_script_comes_from_the_image():
    given = {line.partition("=")[0] for line in rest_of("ARG")}
    given |= set(re.findall(r"([A-Z_]+)=", " ".join(rest_of("ENV"))))
    read = set(re.findall(r"\$\{?([A-Z][A-Z_]+)", INSTALL.read_text(encoding="utf-8")))
    assert read <= given


def test_the_image_does_not_run_as_root():
    words = [word for word, _ in instructions()]
    last_user = rest_of("USER")[-1]
    assert last_user == "${USER_ID}"
    assert words.index("USER") > max(i for i, word in enumerate(words) if word == "RUN")


def test_the_image_starts_its_command_through_the_entry_point():
    (entry,) = rest_of("ENTRYPOINT")
    assert json.loads(entry) == ["/workspace/docker/entrypoint.sh"]
    assert "PROJECT=/workspace" in " ".join(rest_of("ENV")).split()


@pytest.fixture
def workspace():
    """Make a project folder with `data` and `runs` that another user can reach, unlike tmp_path."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    for name in ("data", "runs"):
        (folder / name).mkdir(mode=0o755)
    shutil.copy(ENTRY, folder)
    yield folder
    shutil.rmtree(folder)


def enter(workspace: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run the entry point as a user who is not root."""
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    return subprocess.run(
        [*(user if os.geteuid() == 0 else []), "bash", workspace / ENTRY.name, *command],
        env={"PATH": os.environ["PATH"], "PROJECT": str(workspace)},
        cwd=workspace,
        capture_output=True,
        text=True,
        check=False,
    )


def open_to_all(*folders: Path) -> None:
    for folder in folders:
        folder.chmod(0o777)


def test_the_entry_point_runs_the_command_with_its_words_and_its_status(workspace):
    open_to_all(workspace / "data", workspace / "runs")
    done = enter(workspace, "bash", "-c", 'printf "%s|" "$@"; exit 75', "-", "two words", "")
    assert (done.returncode, done.stdout, done.stderr) == (75, "two words||", "")


@pytest.mark.parametrize("state", ["belongs to another", "is not there", "is a file"])
def test_runs_that_cannot_be_written_end_with_status_2_and_what_to_do(workspace, state):
    runs = workspace / "runs"
    if state == "belongs to another":
        runs.chmod(0o555)
    else:
        runs.rmdir()
    if state == "is a file":
        runs.touch()
    done = enter(workspace, "touch", "started")
    user = 65534 if os.geteuid() == 0 else os.geteuid()
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{runs} cannot be written by user {user}: it belongs to user " in done.stderr
    assert f"sudo chown -R {user} data runs" in done.stderr
    assert not (workspace / "started").exists()


def test_data_that_can_only_be_read_is_said_and_suffices(workspace):
    open_to_all(workspace / "runs")
    (workspace / "data").chmod(0o555)
    done = enter(workspace, "echo", "started")
    assert (done.returncode, done.stdout) == (0, "started\n")
    assert f"{workspace}/data cannot be written by user" in done.stderr


def test_the_compose_file_has_a_gpu_and_a_cpu_profile_of_this_image():
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    arguments = {line.partition("=")[0] for line in rest_of("ARG")}
    assert {name: service["profiles"] for name, service in services.items()} == {
        "gpu": ["gpu"],
        "cpu": ["cpu"],
    }
    for service in services.values():
        assert set(service["build"]["args"]) <= arguments
        assert service["shm_size"]
        script = service["command"][0 if service["command"][0] != "python" else 1]
        assert script == "./deepy.py" or (ROOT / script).is_file()
    assert "nvidia" in str(services["gpu"]["deploy"])
    assert "deploy" not in services["cpu"]


@pytest.mark.skipif(
    Path(sys.prefix) != ROOT / ".venv", reason="needs the environment that make builds"
)
def test_the_python_step_finds_every_pinned_package_installed_here():
    # Without an index pip can only agree or refuse: this environment is what the image gets.
    result = install(
        "requirements",
        VENV=sys.prefix,
        PROJECT=str(ROOT),
        PIP_DRY_RUN="1",
        PIP_NO_INDEX="1",
        PIP_NO_BUILD_ISOLATION="0",
        PIP_CONFIG_FILE=os.devnull,
    )
    assert result.returncode == 0, result.stderr
    assert "Would install megatron_gptx" in result.stdout.replace("-", "_")


def test_the_python_step_comes_before_the_sources_and_finds_all_that_setup_names(tmp_path):
    before = [line for line in rest_of("COPY") if not line.endswith("docker/install.sh")][:2]
    for line in before:
        *sources, target = line.split()
        (tmp_path / target).parent.mkdir(parents=True, exist_ok=True)
        for source in sources:
            place = tmp_path / target
            shutil.copy(ROOT / source, place)
    # What the step would install is known once pip has asked setup.py about the project.
    asked = {
        "VENV": sys.prefix,
        "PROJECT": str(tmp_path),
        "EXTRAS": "gpu",
        "PIP_DRY_RUN": "1",
        "PIP_NO_INDEX": "1",
        "PIP_NO_DEPS": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
        "PIP_CONFIG_FILE": os.devnull,
    }
    result = install("requirements", **asked)
    assert result.returncode == 0, result.stderr
    assert "Would install megatron_gptx" in result.stdout.replace("-", "_")


def test_apex_can_be_left_out():
    result = install("apex", WITH_APEX="0")
    assert result.returncode == 0
    assert "left out" in result.stdout


def test_apex_without_its_pin_is_refused():
    result = install("apex", APEX_URL="somewhere")
    assert result.returncode != 0
    assert "APEX_REF" in result.stderr


@pytest.mark.parametrize("arguments", [(), ("sistem",)])
def test_a_wrong_step_is_refused_with_the_list_of_steps(arguments):
    result = install(*arguments)
    assert result.returncode == 2
    assert all(step in result.stderr for step in steps())
