"""Every mistake gives one message that names what is wrong, where, and what to do.

messages.txt holds them all, to be read from top to bottom. To record them anew after a change that
is meant to change them: `GPTX_RECORD=1 python -m pytest tests/config/test_broken_configs.py`.
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from megatron_gptx.config.errors import ConfigError
from megatron_gptx.config.load import load
from megatron_gptx.config.messages import describe_error
from megatron_gptx.config.options import walk_options
from megatron_gptx.config.schema import Config
from megatron_gptx.launcher.main import main
from tests.config.broken_files import BASE, MISTAKES, OVERRIDES, UNUSABLE
from tests.config.broken_launches import LAUNCHES, REST, Broken, write

MESSAGES = Path(__file__).parent / "golden" / "messages.txt"
HEAD = """\
What each broken input is answered with: the mistake, and below it the whole message.
FOLDER is the folder of the launch, ROOT that of the scripts. Written by
GPTX_RECORD=1 python -m pytest tests/config/test_broken_configs.py
"""


def broken_inputs() -> Iterator[tuple[str, Broken]]:
    """Yield a name and a launch for each mistake; the inputs of one kind are neighbours."""
    words = ("train.py", "rest.yml", "broken.yml")
    for name, (old, new) in MISTAKES.items():
        assert old in BASE, name
        text = BASE.replace(old, new)
        yield name, Broken(words, lambda text=text: write("broken.yml", text))
    for name, content in UNUSABLE.items():
        yield name, Broken(words, lambda content=content: write("broken.yml", content))
    for override in OVERRIDES:
        yield f"--set {override}", Broken(("train.py", "tiny.yml", "--set", override))
    yield from LAUNCHES.items()


INPUTS = dict(broken_inputs())


def recorded() -> dict[str, str]:
    """Return the messages by their mistakes."""
    if not MESSAGES.exists():
        return {}
    _, *parts = re.split(r"^## (.*)\n", MESSAGES.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {name: text.strip("\n") for name, text in zip(parts[::2], parts[1::2], strict=True)}


def record(name: str, said: str) -> None:
    known = {**recorded(), name: said}
    entries = [f"## {each}\n{known[each]}\n" for each in INPUTS if each in known]
    MESSAGES.parent.mkdir(exist_ok=True)
    MESSAGES.write_text("\n".join([HEAD, *entries]), encoding="utf-8")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    # The same name on every machine, however long the path of its temporary files is.
    folder = tmp_path / "launch"
    folder.mkdir()
    monkeypatch.chdir(folder)
    Path("base.yml").write_text(BASE)


@pytest.fixture
def launch(corpus, monkeypatch, tmp_path, capfd):
    """Launch a broken input and return the message; nothing may come of it."""
    for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "DS_ENV_FILE"):
        monkeypatch.delenv(name, raising=False)
    # No launcher, no ssh and no GPU, whatever this machine has.
    monkeypatch.setenv("HOME", str(Path.cwd() / "home"))
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    (programs / "pdsh").touch(mode=0o755)
    root = tmp_path / "root"
    root.mkdir()
    for script in ("train.py", "generate.py", "evaluate.py"):
        (root / script).write_text(f"raise SystemExit('{script} was started')\n")

    def launch(broken: Broken) -> str:
        shutil.copytree(corpus, ".", dirs_exist_ok=True)
        write("tiny.yml", BASE + REST)
        write("rest.yml", REST)
        broken.prepare()
        before = sorted(Path().rglob("*"))
        status = main(broken.words, root)
        shown, said = capfd.readouterr()
        assert (status, shown) == (2, "")
        assert sorted(Path().rglob("*")) == before
        for sign in ("Traceback", "Errno", "pydantic", "Error(", "<class", " object at 0x"):
            assert sign not in said
        return said.strip("\n").replace(str(Path.cwd()), "FOLDER").replace(str(root), "ROOT")

    return launch


@pytest.mark.parametrize("name", INPUTS)
def test_a_broken_input_is_answered_with_the_recorded_message(launch, name):
    said = launch(INPUTS[name])
    if "GPTX_RECORD" in os.environ:
        record(name, said)
    assert said == recorded()[name]


def test_mistakes_that_meet_are_answered_in_one_message_too(launch):
    mistakes = list(MISTAKES.values())
    for number, (old, new) in enumerate(mistakes):
        other_old, other_new = mistakes[number * 7 % len(mistakes)]
        text = BASE.replace(old, new).replace(other_old, other_new, 1)
        words = ("train.py", "rest.yml", "broken.yml", "--set", "model.macaroon=true")
        said = launch(Broken(words, lambda text=text: write("broken.yml", text)))
        assert "--set model.macaroon=true: model.macaroon: unknown key" in said, text


def test_every_recorded_message_belongs_to_a_broken_input():
    assert list(recorded()) == list(INPUTS)
    assert len(INPUTS) >= 183


def message(paths: list[str], overrides: tuple[str, ...] = ()) -> str:
    with pytest.raises(ConfigError) as caught:
        load([Path(path) for path in paths], overrides)
    text = str(caught.value)
    # Without this a user whose error is not caught would also see the parser's own traceback.
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    return text


def test_a_file_that_may_not_be_read_gives_the_reason():
    if os.geteuid() == 0:
        pytest.skip("root may read every file")
    Path("base.yml").chmod(0)
    assert message(["base.yml"]) == "base.yml: cannot be read: permission denied"


def test_all_problems_come_at_once_ordered_by_line():
    Path("broken.yml").write_text(
        BASE.replace("hidden_size: 64", "hidden_size: wide\n  num_layers: 4")
        .replace("  steps", "  step")
        .replace("  lr: 3e-4\n", "  eps: 1e-8\n")
    )
    # `steps` is not called missing as well: the misspelled key beside it means it.
    assert message(["broken.yml"]) == (
        "broken.yml has 4 problems:\n"
        "  line 3: model.hidden_size: should be a whole number, got 'wide'\n"
        "  line 4: model.num_layers: given twice, first on line 2; keep one\n"
        "  line 10: training.step: unknown key; did you mean 'steps'?\n"
        "  line 13: optimizer.lr: required option is missing: Peak learning rate."
    )


def test_contradictions_of_several_sections_come_at_once():
    Path("broken.yml").write_text(
        BASE.replace("num_heads: 4", "num_heads: 5") + "parallel:\n  boundaries: [1]\n"
    )
    lines = message(["broken.yml"]).splitlines()
    assert lines[0] == "broken.yml has 2 problems:"
    assert lines[1].startswith("  line 4: model.num_heads: ")
    assert lines[2].startswith("  line 15: parallel.boundaries: ")


def test_problems_of_several_sources_name_each_source():
    Path("more.yml").write_text("schedule:\n  warmup: 5\n")
    Path("broken.yml").write_text(BASE.replace("macaron: true", "macaron: no"))
    assert message(["broken.yml", "more.yml"], ("training.step=5",)) == (
        "the configuration has 3 problems:\n"
        "  broken.yml, line 7: model.macaron: should be true or false, got 'no'; write false\n"
        "  more.yml, line 2: schedule.warmup: unknown key; did you mean 'warmup_steps'?\n"
        "  --set training.step=5: training.step: unknown key; did you mean 'steps'?"
    )


def test_a_contradiction_points_at_the_source_that_decided():
    Path("more.yml").write_text("parallel:\n  pipeline_stages: 9\n")
    assert message(["base.yml", "more.yml"]).startswith(
        "more.yml has 1 problem:\n  line 2: parallel.pipeline_stages: 9 stages for the 7 layers"
    )


def test_a_replaced_section_leaves_no_place_behind():
    Path("number.yml").write_text("optimizer: 3\n")
    Path("again.yml").write_text("# fresh\noptimizer:\n  eps: 1e-8\n")
    assert message(["base.yml", "number.yml", "again.yml"]).startswith(
        "again.yml has 1 problem:\n  line 2: optimizer.lr: required option is missing"
    )


def test_several_unreadable_sources_are_all_reported():
    Path("tab.yml").write_text("model:\n\tx: 1\n")
    assert message(["tab.yml", "gone.yml"], ("steps",)) == (
        "the configuration has 3 problems:\n"
        "  tab.yml, line 2: found a tab; YAML is indented with spaces\n"
        f"  gone.yml: no such file in {Path.cwd()}\n"
        "  --set steps: expected section.key=value, such as training.steps=100"
    )


def test_contradictions_are_found_beside_key_and_type_errors_of_the_same_section():
    Path("broken.yml").write_text(
        BASE.replace("hidden_size: 64", "hidden_size: 192")
        .replace("num_heads: 4", "num_heads: 5\n  position: rotary\n  dropuot: 0.1")
        .replace("lr: 3e-4", "lr: fast\nparallel:\n  zero_stage: 3\n  pipeline_stages: 2")
    )
    assert message(["broken.yml"]) == (
        "broken.yml has 5 problems:\n"
        "  line 4: model.num_heads: hidden_size 192 is not divisible by num_heads 5; the nearest "
        "hidden sizes are 190 and 195\n"
        "  line 5: model.position: should be 'alibi', 'learned' or 'none', got 'rotary'\n"
        "  line 6: model.dropuot: unknown key; did you mean 'dropout'?\n"
        "  line 15: optimizer.lr: should be a number, got 'fast'\n"
        "  line 17: parallel.zero_stage: zero_stage 3 does not work with pipeline_stages 2; use "
        "zero_stage 0 or 1, or one stage"
    )


@pytest.mark.parametrize(
    "heads", ["num_heads: five", "num_head: 5", "num_heads: 5\n  num_heads: 5"]
)
def test_a_value_that_could_not_be_read_contradicts_nothing(heads):
    Path("broken.yml").write_text(BASE.replace("num_heads: 4", heads))
    assert "not divisible" not in message(["broken.yml"])
    assert message(["broken.yml"]).startswith("broken.yml has 1 problem:\n")


def test_a_source_that_cannot_be_read_hides_no_mistake_of_another_one():
    Path("tab.yml").write_text("optimizer:\n\tlr: 1\n")
    Path("broken.yml").write_text(BASE.replace("steps: 10", "step: 10").partition("optimizer")[0])
    # What is missing, or contradicts something, may stand in the file that could not be read.
    assert message(["broken.yml", "tab.yml"]) == (
        "the configuration has 2 problems:\n"
        "  broken.yml, line 9: training.step: unknown key; did you mean 'steps'?\n"
        "  tab.yml, line 2: found a tab; YAML is indented with spaces"
    )


def test_a_section_given_twice_is_one_problem():
    Path("broken.yml").write_text(f"{BASE}model:\n  num_layers: 2\n")
    assert message(["broken.yml"]) == (
        "broken.yml has 1 problem:\n  line 14: model: given twice, first on line 1; keep one"
    )


def test_every_kind_of_wrong_value_has_words():
    values = (None, True, -1, 2.5, 1e300, 10**18, "", "x", [], ["a"], [1, 2, 3], {}, {"a": 1})
    for option in walk_options():
        for value in values:
            tree: object = value
            for name in reversed(option.path):
                tree = {name: tree}
            with pytest.raises(ValidationError) as caught:  # of each, most options are missing
                Config.model_validate(tree)
            texts = [describe_error(error) for error in caught.value.errors(include_url=False)]
            assert not [text for text in texts if "nput" in text or "valid " in text]
