"""Models with few layers train in every layout, also where a stage owns no parameter."""

import math
from typing import Any

import pytest

from tests.runs import tiny_config, train

# Four layers: the embedding, a block, the final norm, and the head.
SMALL: dict[str, Any] = {
    "model__num_layers": 1,
    "training__steps": 3,
    "training__check_replicas": 1,
    "optimizer__gradient_clipping": 0.3,
    "ops__backend": "reference",
}
# Rounding of the arithmetic, relative: some steps of it in a sum.
ROUNDING = {"fp32": 64 * 2.0**-23, "bf16": 8 * 2.0**-8}


@pytest.fixture(scope="module")
def rows(corpus, tmp_path_factory):
    """Train with options and return the rows of the metrics."""

    def rows(**options: Any) -> list[dict[str, float]]:
        folder = tmp_path_factory.mktemp("run")
        return train(tiny_config(corpus, folder, **{**SMALL, **options}))

    return rows


@pytest.fixture(scope="module")
def alone(rows):
    """The same model on one stage, by whether its head is tied."""
    return {tied: rows(model__tied_head=tied) for tied in (False, True)}


@pytest.mark.parametrize(
    ("tied", "zero_stage", "precision"),
    [(True, 0, "fp32"), (False, 1, "fp32"), (True, 1, "fp32"), (True, 1, "bf16")],
)
def test_each_layer_may_be_a_stage_of_its_own(rows, alone, tied, zero_stage, precision):
    """Then a stage has matrices only, tables only, norms only, or only a copy of a tied table."""
    split = rows(
        model__tied_head=tied,
        parallel__pipeline_stages=4,
        parallel__zero_stage=zero_stage,
        precision=precision,
    )
    for key in ("loss", "grad_norm"):
        found, wanted = ([row[key] for row in each] for each in (split, alone[tied]))
        assert all(map(math.isfinite, found))
        assert found == pytest.approx(wanted, rel=ROUNDING[precision])
    if zero_stage == 0:
        assert [row["loss"] for row in split] == [row["loss"] for row in alone[tied]]
