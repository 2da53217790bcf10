"""Balanced stages, against all other ways to cut."""

import random
from itertools import combinations, pairwise

import pytest

from megatron_gptx.config.errors import UserError
from megatron_gptx.config.schema import Config
from megatron_gptx.costs.flops import layer_flops
from megatron_gptx.costs.parameters import held_parameters
from megatron_gptx.costs.stages import balance, boundaries


def test_the_reference_is_cut_before_its_eleventh_block(reference_model):
    assert balance(reference_model, 2) == [0, 11, 23]


def worth(model, edges):
    """Return what balance() promises to make as small as possible, most important first."""
    stages = list(pairwise(edges))
    flops = [sum(layer_flops(model)[first:stop]) for first, stop in stages]
    parameters = [held_parameters(model, first, stop) for first, stop in stages]
    return max(flops), max(parameters), sum(flop**2 for flop in flops), edges


def random_model(make_model, source):
    return make_model(
        num_layers=source.randint(1, 7),
        vocab_size=source.choice([2, 20, 300, 2000]),
        seq_length=source.randint(2, 40),
        residual=source.choice(["rezero", "post_norm"]),
        position=source.choice(["learned", "alibi"]),
        tied_head=source.random() < 0.5,
    )


@pytest.mark.parametrize("seed", range(30))
def test_no_other_cut_is_better(make_model, seed):
    model = random_model(make_model, random.Random(seed))
    num_layers = model.num_pipeline_layers
    for num_stages in range(1, num_layers + 1):
        inner = combinations(range(1, num_layers), num_stages - 1)
        best = min(worth(model, [0, *edges, num_layers]) for edges in inner)
        assert balance(model, num_stages) == best[-1]


def test_a_large_head_gets_fewer_blocks(make_model):
    small, large = (balance(make_model(num_layers=8, vocab_size=v), 2)[1] for v in (2, 400))
    assert small < large


def test_the_largest_gpt_is_balanced_at_once(make_model):
    model = make_model(num_layers=96)
    edges = balance(model, 48)
    assert [edges[0], edges[-1], len(edges)] == [0, model.num_pipeline_layers, 49]


@pytest.mark.parametrize("num_stages", [0, 7, 100])
def test_stages_without_layers_are_refused(make_model, num_stages):
    with pytest.raises(UserError, match=rf"6 layers.*{num_stages} stages.*pipeline_stages"):
        balance(make_model(), num_stages)


def test_configured_boundaries_win(make_config):
    assert boundaries(make_config(parallel={"pipeline_stages": 2})) == [0, 3, 6]
    config = make_config(parallel={"pipeline_stages": 3, "boundaries": [1, 5]})
    assert boundaries(config) == [0, 1, 5, 6]


@pytest.mark.parametrize("edges", [[0], [6], [7], [3, 3], [4, 2]])
def test_configured_boundaries_cannot_empty_a_stage(make_config, edges):
    parallel = {"pipeline_stages": len(edges) + 1, "boundaries": edges}
    config = make_config(parallel=parallel)
    assert isinstance(config, Config)
    with pytest.raises(UserError, match="empty"):
        boundaries(config)
