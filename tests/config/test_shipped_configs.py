"""Every file in configs/ loads, and holds what its name promises."""

from pathlib import Path

import pytest

from megatron_gptx.config.load import load
from megatron_gptx.config.schema import Config
from megatron_gptx.config.yaml_writer import dump

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RUNS = sorted(CONFIGS.glob("*.yml"))
OVERLAYS = sorted(CONFIGS.glob("overlays/*.yml"))
GPTX = ["1B", "125M", "350M", "quickstart"]


def shipped(name: str) -> Config:
    return load([CONFIGS / f"{name}.yml"])


def test_the_files_that_the_documentation_names_exist():
    gpt3 = {f"gpt3-{size}" for size in ("1.3B", "2.7B", "6.7B", "13B", "175B")}
    assert {path.stem for path in RUNS} >= {*GPTX, *gpt3, "1B-v100x2"}
    assert {path.stem for path in OVERLAYS} >= {"cpu", "one-gpu", "slurm"}


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_run_loads_and_comes_back_from_its_written_form(path, tmp_path):
    config = load([path])
    (tmp_path / "written.yml").write_text(dump(config), encoding="utf-8")
    assert load([tmp_path / "written.yml"]) == config
    assert config.output.run_dir == f"runs/{path.stem}"
    assert Config.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: path.stem)
@pytest.mark.parametrize("name", ["1B", "125M", "quickstart"])
def test_an_overlay_loads_on_top_of_a_run(path, name):
    below, config = shipped(name), load([CONFIGS / f"{name}.yml", path])
    assert config != below
    assert config.model == below.model


@pytest.mark.parametrize("path", [*RUNS, *OVERLAYS], ids=lambda path: path.stem)
def test_the_first_line_points_editors_at_the_schema(path):
    first, *rest = path.read_text(encoding="utf-8").splitlines()
    prefix, _, target = first.partition("$schema=")
    assert prefix == "# yaml-language-server: "
    assert (path.parent / target).resolve() == CONFIGS / "schema.json"
    assert any(line.lstrip().startswith("# ") or " # " in line for line in rest)


@pytest.mark.parametrize("name", GPTX)
def test_a_gptx_has_all_five_ideas(name):
    model = shipped(name).model
    assert model.residual == "rezero"
    assert model.position == "alibi"
    assert model.macaron
    assert model.attention.top_k == 8
    assert model.attention.residual_scores
    assert model.ffn_width == 2 * model.hidden_size


def test_the_v100_model_is_the_reference_specification():
    config = shipped("1B-v100x2")
    model = config.model
    sizes = (model.num_layers, model.hidden_size, model.num_heads, model.vocab_size)
    assert (*sizes, model.seq_length) == (20, 2048, 16, 22000, 1024)
    assert (model.residual, model.position, model.attention.top_k) == ("rezero", "learned", 8)
    assert (model.macaron, model.attention.residual_scores, model.tied_head) == (False,) * 3
    assert model.biases
    assert model.dropout == model.attention.dropout == 0
    assert (config.batch.micro_size, config.batch.accumulation_steps) == (1, 4)
    assert (config.precision, config.parallel.pipeline_stages) == ("fp16", 2)
    assert config.optimizer.lr == 2e-4


@pytest.mark.parametrize(
    ("size", "layers", "width", "heads", "lr", "sequences"),
    [
        ("1.3B", 24, 2048, 16, 2.0e-4, 512),
        ("2.7B", 32, 2560, 32, 1.6e-4, 512),
        ("6.7B", 32, 4096, 32, 1.2e-4, 1024),
        ("13B", 40, 5120, 40, 1.0e-4, 1024),
        ("175B", 96, 12288, 96, 0.6e-4, 1536),
    ],
)
def test_a_gpt3_has_the_published_sizes(size, layers, width, heads, lr, sequences):
    config = shipped(f"gpt3-{size}")
    model = config.model
    assert (model.num_layers, model.hidden_size, model.num_heads) == (layers, width, heads)
    assert (model.residual, model.position, model.attention.top_k) == ("pre_norm", "learned", None)
    assert (config.optimizer.lr, config.batch.global_size, model.seq_length) == (
        lr,
        sequences,
        2048,
    )
    tokens = config.training.steps * sequences * model.seq_length
    assert abs(tokens / 300e9 - 1) < 1e-4
    # Twelve weights per layer and width squared, and the tables, make the size in the name.
    weights = 12 * layers * width**2 + (model.vocab_size + model.seq_length) * width
    assert abs(weights / (float(size[:-1]) * 1e9) - 1) < 0.05
