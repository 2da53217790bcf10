"""Training on a GPU resumes, repeats and stops as it does on the CPU."""

import json
from pathlib import Path

import pytest

from megatron_gptx.checkpoint.integrity import damage
from megatron_gptx.checkpoint.latest import newest
from megatron_gptx.checkpoint.manifest import read
from megatron_gptx.checkpoint.names import checkpoint_folder, step_name
from megatron_gptx.config.schema import Config
from megatron_gptx.distributed.exit_status import STOPPED
from tests.launches import Place, has_rows, wait_for
from tests.runs import losses, tiny_config, train, without_speed

STEPS, SAVED = 12, 6
# Everything that draws or recomputes, at once.
RANDOM = {
    "model__dropout": 0.1,
    "model__attention__dropout": 0.1,
    "training__checkpoint_activations": 2,
}
# Far too large a scale at first; and one that is doubled again and again until it is too large.
RESCALED = {"initial_scale_power": 19, "loss_scale_window": 2, "hysteresis": 1}
ARRANGEMENTS = [
    *(("fp32", zero_stage) for zero_stage in (0, 1, 2, 3)),
    *(("bf16", zero_stage) for zero_stage in (1, 2, 3)),
    *(("fp16", zero_stage) for zero_stage in (1, 2, 3)),
]


def gpu_config(corpus: Path, run_dir: Path, **options: object) -> Config:
    return tiny_config(corpus, run_dir, launch__device="cuda", **options)


def reported(rows: list[dict[str, float]]) -> list[str]:
    """Return all but speeds, as text: a norm that is not a number equals itself then."""
    return [json.dumps(row, sort_keys=True) for row in without_speed(rows)]


def updates(run_dir: Path, step: int) -> int:
    """Return how many of the first steps were applied."""
    saved = read(checkpoint_folder(run_dir) / step_name(step))
    return saved.manifest["optimizer"]["steps"]


def assert_it_resumes(config: Config) -> None:
    """Fail unless the steps after the save are the same in a second run."""
    whole = train(config)
    # As if the run had been killed before its last save.
    run_dir = Path(config.output.run_dir)
    (checkpoint_folder(run_dir) / "latest").write_text(f"{step_name(SAVED)}\n")
    future = [row | {"loss": 0.0} if row["step"] > SAVED else row for row in whole]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in future))
    resumed = train(config)
    assert [row["step"] for row in resumed] == list(range(1, STEPS + 1))
    assert reported(resumed) == reported(whole)


@pytest.mark.parametrize(("precision", "zero_stage"), ARRANGEMENTS)
def test_the_steps_after_a_save_equal_the_uninterrupted_run(
    corpus, tmp_path, precision, zero_stage
):
    config = gpu_config(
        *(corpus, tmp_path),
        **RANDOM,
        precision=precision,
        parallel__zero_stage=zero_stage,
        optimizer__gradient_clipping=0.5,
        training__steps=STEPS,
        checkpoint__interval=SAVED,
        deepspeed={"fp16": RESCALED} if precision == "fp16" else {},
    )
    assert_it_resumes(config)
    before, after = updates(tmp_path, SAVED), updates(tmp_path, STEPS)
    if precision == "fp16":
        assert 0 < before < SAVED
        assert 0 < after - before < STEPS - SAVED
    else:
        assert (before, after) == (SAVED, STEPS)


def test_an_asynchronous_save_resumes_as_well(corpus, tmp_path):
    config = gpu_config(
        *(corpus, tmp_path),
        **RANDOM,
        precision="bf16",
        training__steps=STEPS,
        checkpoint__interval=SAVED,
        checkpoint__asynchronous=True,
    )
    assert_it_resumes(config)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_deterministic_runs_have_the_same_bits(corpus, tmp_path, precision):
    options = {**RANDOM, "precision": precision, "training__deterministic": True}
    options["training__steps"] = STEPS
    first, second = (train(gpu_config(corpus, tmp_path / name, **options)) for name in "ab")
    assert reported(first) == reported(second)
    written = sorted((tmp_path / "a").rglob("*.safetensors"))
    assert written
    for path in written:
        other = tmp_path / "b" / path.relative_to(tmp_path / "a")
        assert path.read_bytes() == other.read_bytes()


def test_the_kernels_train_to_the_losses_of_plain_pytorch(corpus, tmp_path):
    fused, reference = (
        losses(train(gpu_config(corpus, tmp_path / backend, ops__backend=backend)))
        for backend in ("fused", "reference")
    )
    assert len(fused) == 20
    # Sums in another order differ by a few rounding steps of float32, 2^-23 each, and every update
    # carries them on: hence the bound that the golden losses have on another processor.
    assert fused[0] == pytest.approx(reference[0], rel=64 * 2.0**-23)
    assert fused == pytest.approx(reference, rel=1e-4)


def test_a_signal_saves_the_step_and_ends_with_75(tmp_path):
    place = Place(
        tmp_path,
        parallel__pipeline_stages=1,
        launch__device="cuda",
        training__steps=100_000,
        precision="bf16",
    )
    run_dir = tmp_path / "run"
    try:
        launcher = place.start("train.py", "tiny.yml")
        wait_for(lambda: has_rows(run_dir / "metrics.jsonl")() or launcher.poll() is not None)
        launcher.terminate()
        shown, said = launcher.communicate(timeout=60)
        assert (launcher.returncode, said) == (STOPPED, ""), shown + said
        checkpoint = newest(run_dir)
        assert checkpoint is not None
        assert damage(checkpoint, checkpoint.manifest["files"]) is None
        assert f"stopped by SIGTERM at step {checkpoint.step}; saved" in shown
        last = (run_dir / "metrics.jsonl").read_text().splitlines()[-1]
        assert json.loads(last)["step"] == checkpoint.step
        wait_for(place.is_empty, seconds=5)
    finally:
        place.clear()
