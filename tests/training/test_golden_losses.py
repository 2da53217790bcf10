"""The tiny model's losses are what they were: a refactoring must not move a bit of them.

To record them anew after a change that is meant to move them:
`GPTX_RECORD=1 python -m pytest tests/training/test_golden_losses.py`, and say why in the commit.
"""

import json
import os
from pathlib import Path

import pytest
import torch

from tests.runs import losses, tiny_config, train, write_corpus

GOLDEN = Path(__file__).parent / "golden_losses.json"


def platform() -> dict[str, str]:
    # Another vector width or another torch sums in another order.
    return {
        "torch": str(torch.__version__).partition("+")[0],
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }


def test_losses_of_the_tiny_model_are_reproduced_exactly(tmp_path):
    write_corpus(tmp_path)
    found = losses(train(tiny_config(tmp_path, tmp_path / "run", parallel__pipeline_stages=2)))
    if "GPTX_RECORD" in os.environ:
        GOLDEN.write_text(json.dumps({"platform": platform(), "losses": found}, indent=1) + "\n")
    golden = json.loads(GOLDEN.read_text())
    assert len(found) == 20
    if golden["platform"] == platform():
        assert found == golden["losses"]
    else:
        # Float32 rounding, amplified over twenty steps.
        assert found == pytest.approx(golden["losses"], rel=1e-4)
