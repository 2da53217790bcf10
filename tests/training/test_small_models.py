"""Models with few layers train in every layout, also where a stage owns no parameter."""

import math
from typing import Any

import pytest

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


@pytest.mark.parametrize(
    ("tied", "zero_stage", "precision"),
    [(True, 0, "fp32"), (False, 1, "fp32"), (True, 1, "fp32"), (True, 1, "bf16")],
)
def test_each_layer_may_be_a_stage_of_its_own(finished, tied, zero_stage, precision):
    """Then a stage has matrices only, tables only, norms only, or only a copy of a tied table."""
    options = {**SMALL, "model__tied_head": tied}
    alone = finished(**options)
    split = finished(
        **options,
        parallel__pipeline_stages=4,
        parallel__zero_stage=zero_stage,
        precision=precision,
    )
    for key in ("loss", "grad_norm"):
        found, wanted = ([row[key] for row in each.rows] for each in (split, alone))
        assert all(map(math.isfinite, found))
        assert found == pytest.approx(wanted, rel=ROUNDING[precision])
    if zero_stage == 0:
        assert split.losses == alone.losses
