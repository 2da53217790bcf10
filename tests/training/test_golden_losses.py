"""The tiny model's losses are what they were: a refactoring must not move a bit of them.

To record them anew after a change that is meant to move them:
`GPTX_RECORD=1 python -m pytest tests/training/test_golden_losses.py`, and say why in the commit.
"""

import json
import os
from pathlib import Path

import pytest
import torch

from megatron_gptx.ops import library
from tests.runs import losses, tiny_config, train, write_corpus

GOLDEN = Path(__file__).parent / "golden_losses.json"


def platform() -> dict[str, str]:
    # Another vector width or another torch sums in another order.
    return {
        "torch": str(torch.__version__).partition("+")[0],
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }


def losses_of_the_tiny_model(folder: Path, backend: str) -> list[float]:
    write_corpus(folder)
    options = {"parallel__pipeline_stages": 2, "ops__backend": backend}
    return losses(train(tiny_config(folder, folder / "run", **options)))


def test_losses_of_the_tiny_model_are_reproduced_exactly(tmp_path):
    # Plain PyTorch, so that the numbers are those of a machine without a compiler too.
    found = losses_of_the_tiny_model(tmp_path, "reference")
    if "GPTX_RECORD" in os.environ:
        GOLDEN.write_text(json.dumps({"platform": platform(), "losses": found}, indent=1) + "\n")
    golden = json.loads(GOLDEN.read_text())
    assert len(found) == 20
    if golden["platform"] == platform():
        assert found == golden["losses"]
    else:
        assert found == approximately(golden["losses"])


def test_fused_kernels_train_to_the_same_losses(tmp_path):
    if reason := library.load(print):
        pytest.skip(f"the kernels cannot run here: {reason}")
    found = losses_of_the_tiny_model(tmp_path, "fused")
    assert found == approximately(json.loads(GOLDEN.read_text())["losses"])


def approximately(expected: list[float]) -> object:
    # Float32 rounding, amplified over twenty steps.
    return pytest.approx(expected, rel=1e-4)
