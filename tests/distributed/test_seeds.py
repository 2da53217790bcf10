"""Random streams depend on their purpose alone."""

import itertools

from megatron_gptx.distributed.seeds import derive_seed


def test_a_seed_is_the_same_in_every_process_and_version():
    assert derive_seed(1234, "weights", 3) == 749175022857604719


def test_purposes_never_share_a_stream():
    purposes = itertools.product([0, 1, 11], ["weights", "dropout"], [0, 1, 11], [0, 1, 11])
    seeds = [derive_seed(*purpose) for purpose in purposes]
    assert len(set(seeds)) == len(seeds) == 54


def test_seeds_fit_what_generators_take():
    assert all(0 <= derive_seed(seed, "x") < 2**63 for seed in range(100))
