"""Any two of global batch, micro-batch and accumulation give the third."""

import pytest

from megatron_gptx.config.batch import derive_batch


@pytest.mark.parametrize(
    ("given", "replicas", "triple"),
    [
        ((None, 4, None), 1, (4, 4, 1)),
        ((None, 4, 3), 2, (24, 4, 3)),
        ((24, 4, None), 2, (24, 4, 3)),
        ((24, None, 3), 2, (24, 4, 3)),
        ((24, 4, 3), 2, (24, 4, 3)),
        ((24, None, None), 2, (24, 12, 1)),
    ],
)
def test_given_sizes_derive_the_rest(given, replicas, triple):
    assert derive_batch(*given, replicas=replicas) == triple


@pytest.mark.parametrize(
    ("given", "replicas", "nearest"),
    [
        ((25, 4, None), 2, "24 or 32"),
        ((3, 4, None), 2, "8"),
        ((24, 4, 2), 2, "16"),
        ((25, None, None), 2, "24 or 26"),
        ((25, None, 3), 2, "24 or 30"),
    ],
)
def test_an_impossible_triple_names_the_nearest_valid_sizes(given, replicas, nearest):
    with pytest.raises(ValueError, match=f"the nearest valid global_batch_size is {nearest}$"):
        derive_batch(*given, replicas=replicas)


def test_no_size_at_all_asks_for_one():
    with pytest.raises(ValueError, match="give global_batch_size or micro_batch_size"):
        derive_batch(None, None, 4, replicas=1)
