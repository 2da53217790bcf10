"""Files and overrides become one configuration that knows where its values came from."""

from pathlib import Path

import pytest

from megatron_gptx.config.errors import ConfigError
from megatron_gptx.config.load import load, load_with_sources

BASE = """\
model:
  num_layers: 4
  hidden_size: 64
  num_heads: 4
  vocab_size: 100
  seq_length: 32
  attention:
    top_k: 8
training:
  steps: 10
  micro_batch_size: 2
optimizer:
  lr: 1
"""


@pytest.fixture
def base(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("base.yml").write_text(BASE)
    return Path("base.yml")


def test_a_minimal_file_gets_every_default(base):
    config = load([base])
    assert config.model.attention.top_k == 8
    assert config.schedule.name == "cosine"
    assert config.optimizer.lr == 1.0
    assert isinstance(config.optimizer.lr, float)


def test_a_later_file_changes_only_the_keys_that_it_names(base):
    Path("more.yml").write_text("model:\n  attention:\n    residual_scores: true\n  num_heads: 8\n")
    config = load([base, Path("more.yml")])
    assert config.model.num_heads == 8
    assert config.model.hidden_size == 64
    assert config.model.attention.top_k == 8
    assert config.model.attention.residual_scores


def test_a_list_and_a_null_replace_what_was_there(base):
    Path("more.yml").write_text(
        "model:\n  attention:\n    top_k: null\noptimizer:\n  betas: [0, 0.5]\n"
    )
    config = load([base, Path("more.yml")])
    assert config.model.attention.top_k is None
    assert config.optimizer.betas == [0.0, 0.5]


def test_overrides_win_over_all_files_and_later_ones_over_earlier_ones(base):
    Path("more.yml").write_text("training:\n  steps: 20\n")
    config = load([base, Path("more.yml")], ["training.steps=30", "training.steps=40"])
    assert config.training.steps == 40


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("parallel.boundaries=[3]", [3]),
        ("parallel.boundaries=null", None),
        ("parallel.boundaries=", None),
    ],
)
def test_the_value_of_an_override_is_yaml(base, override, value):
    config = load([base], ["parallel.pipeline_stages=2", override])
    assert config.parallel.boundaries == value


def test_an_override_may_hold_an_equals_sign(base):
    config = load([base], ["launch.launcher_args=--partition=gpu"])
    assert config.launch.launcher_args == "--partition=gpu"


def test_the_deepspeed_section_is_merged_key_by_key(base):
    Path("more.yml").write_text("deepspeed:\n  zero_optimization:\n    reduce_bucket_size: 5e8\n")
    config = load([base, Path("more.yml")], ["deepspeed.zero_optimization.overlap_comm=true"])
    assert config.deepspeed == {
        "zero_optimization": {"reduce_bucket_size": 500_000_000, "overlap_comm": True}
    }


@pytest.mark.parametrize("text", ["1e2", "1E+2", "1.0e2", "0x64", "100", "+100"])
def test_a_whole_number_is_an_integer_however_it_is_written(base, text):
    steps = load([base], [f"training.steps={text}"]).training.steps
    assert steps == 100
    assert isinstance(steps, int)


@pytest.mark.parametrize(
    ("text", "value"),
    [("3e-4", 3e-4), ("1e-5", 1e-5), ("1e8", 1e8), (".5", 0.5), ("1.", 1.0), ("2E-3", 2e-3)],
)
def test_an_exponent_makes_a_number(base, text, value):
    assert load([base], [f"optimizer.weight_decay={text}"]).optimizer.weight_decay == value


@pytest.mark.parametrize("text", ["off", "no", "yes", "on", "2026-01-01", "12:30:00", "1_000"])
def test_words_that_yaml_1_1_would_convert_stay_text(base, text):
    assert load([base], [f"output.run_dir={text}"]).output.run_dir == text


def test_a_quoted_number_is_text(base):
    assert load([base], ['output.run_dir="5"']).output.run_dir == "5"


def test_an_anchor_may_be_used_again(base):
    base.write_text(BASE.replace("  steps: 10", "  steps: &n 10\n  accumulation_steps: *n"))
    assert load([base]).training.accumulation_steps == 10


def test_a_byte_order_mark_is_skipped(base):
    base.write_bytes(b"\xef\xbb\xbf" + BASE.encode())
    assert load([base]).training.steps == 10


def test_every_option_knows_where_its_value_came_from(base):
    Path("more.yml").write_text("# a comment\ntraining:\n  seed: 5\n")
    loaded = load_with_sources([base, Path("more.yml")], ["optimizer.lr=2e-3"])
    assert loaded.config.training.seed == 5
    assert loaded.sources["model.attention.top_k"] == "base.yml:8"
    assert loaded.sources["training.steps"] == "base.yml:10"
    assert loaded.sources["training.seed"] == "more.yml:3"
    assert loaded.sources["optimizer.lr"] == "--set"
    assert loaded.sources["schedule.name"] == "default"
    assert loaded.sources["deepspeed"] == "default"


def test_a_replaced_value_has_the_source_of_its_replacement(base):
    Path("more.yml").write_text("optimizer:\n  betas: [0.8, 0.9]\n")
    loaded = load_with_sources([base, Path("more.yml")], ["training.steps=5"])
    assert loaded.sources["optimizer.betas"] == "more.yml:2"
    assert loaded.sources["training.steps"] == "--set"


def test_loading_nothing_names_an_example():
    with pytest.raises(ConfigError, match="name at least one configuration file"):
        load([])
