"""A path means the same in a file and in `--set`, for whoever reads it."""

from pathlib import Path

import pytest

from megatron_gptx.config.errors import ConfigError
from megatron_gptx.config.load import draft, load
from megatron_gptx.config.paths import expand_words
from tests.config.broken_files import BASE

# Every option that takes a path, and what the value is in the configuration.
OPTIONS = {
    "output.run_dir={}": lambda config: config.output.run_dir,
    "launch.hostfile={}": lambda config: config.launch.hostfile,
    "checkpoint.initialize_from={}": lambda config: config.checkpoint.initialize_from,
    "data.tokenizer={}": lambda config: config.data.tokenizer,
    "data.train={}": lambda config: config.data.train,
    "data.train={{{}: 1}}": lambda config: next(iter(config.data.train)),
    "data.valid={}": lambda config: config.data.valid,
    "data.valid={{{}: 1, x: 2}}": lambda config: next(iter(config.data.valid)),
    "data={{train: x, labels: {{x: {}}}}}": lambda config: config.data.labels["x"],
    "data={{train: {0}, labels: {{{0}: x}}}}": lambda config: next(iter(config.data.labels)),
}


@pytest.fixture
def base(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/the/home")
    Path("base.yml").write_text(BASE)
    return Path("base.yml")


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize(
    ("path", "meant"),
    [("~/x", "/the/home/x"), ("~", "/the/home"), ("x/~", "x/~"), ("../x y", "../x y")],
)
def test_a_tilde_at_the_start_is_the_home_folder(base, option, path, meant):
    assert OPTIONS[option](load([base], [option.format(f'"{path}"')])) == meant


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("path", ["$HOME/x", "x/${HOME}", "${HOME:-x}/x", "${HOME"])
def test_a_variable_is_refused_by_name(base, option, path):
    with pytest.raises(ConfigError, match=r"holds the variable \$"):
        load([base], [option.format(f'"{path}"')])


@pytest.mark.parametrize("path", ["$", "5$", "$(x)", "a$1"])
def test_a_dollar_that_names_no_variable_is_a_dollar(base, path):
    assert load([base], [f"output.run_dir={path}"]).output.run_dir == path


def test_a_path_is_expanded_where_other_options_could_not_be_read(base):
    words = ["output.run_dir=~/x", "data.train={~/y: 1}", "model.layers=4", "optimizer.lr=fast"]
    config = draft([base], words).config
    assert config.output.run_dir == "/the/home/x"
    assert config.data.train_weights == {"/the/home/y": 1}


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("--output-prefix=~/x y", "--output-prefix=/the/home/x y"),
        ("--output=~", "--output=/the/home"),
        ("--output=x/~", "--output=x/~"),
        ("--glob=~*", "--glob=~*"),
        ("--set=output.run_dir=~/x", "--set=output.run_dir=~/x"),  # its option is a path itself
        ("~/x", "~/x"),  # which a shell replaces
    ],
)
def test_a_tilde_behind_an_equals_sign_is_the_home_folder(monkeypatch, word, meant):
    monkeypatch.setenv("HOME", "/the/home")
    assert expand_words([word, "-"]) == [meant, "-"]
