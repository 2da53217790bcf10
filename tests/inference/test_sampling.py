"""One token from one row of logits."""

import pytest
import torch

from megatron_gptx.config.errors import UserError
from megatron_gptx.config.output import GenerationConfig
from megatron_gptx.inference.sampling import sample

# Softmax gives 0.5, 0.25, 0.125, 0.125.
LOGITS = torch.tensor([0.125, 0.5, 0.125, 0.25]).log()


def draws(logits: torch.Tensor = LOGITS, *, count: int = 2000, **options: object) -> list[int]:
    generator = torch.Generator().manual_seed(0)
    config = GenerationConfig.model_validate(options)
    return [sample(logits, config, generator) for _ in range(count)]


def test_temperature_0_takes_the_likeliest():
    assert set(draws(temperature=0.0, count=10)) == {1}


def test_the_likeliest_of_one_is_the_likeliest():
    assert set(draws(top_k=1, count=100)) == {1}


def test_samples_follow_the_probabilities():
    counts = torch.tensor(draws()).bincount(minlength=4) / 2000
    # Four standard deviations of a share of 2000 draws, at most sqrt(1/4 / 2000) each.
    assert torch.allclose(counts, LOGITS.exp(), atol=4 * (0.25 / 2000) ** 0.5)


def test_temperature_sharpens_and_flattens():
    # A temperature of 1/2 squares the probabilities: 16 : 4 : 1 : 1.
    sharp = draws(temperature=0.5).count(1) / 2000
    assert sharp == pytest.approx(16 / 22, abs=4 * (0.25 / 2000) ** 0.5)
    flat = draws(temperature=1e3).count(1) / 2000
    assert flat == pytest.approx(1 / 4, abs=4 * (0.25 / 2000) ** 0.5)


@pytest.mark.parametrize("temperature", [1e-6, 1e-40, 1e-300, 5e-324])
def test_a_temperature_near_0_takes_the_likeliest(temperature):
    assert set(draws(temperature=temperature, count=10)) == {1}
    assert set(draws(1e6 * LOGITS, temperature=temperature, top_p=0.9, count=10)) == {1}


def test_an_id_whose_logit_is_minus_infinity_is_never_drawn():
    masked = LOGITS.clone()
    masked[1] = float("-inf")
    assert set(draws(masked, temperature=1e3)) == {0, 2, 3}
    assert set(draws(masked, temperature=0.0, count=10)) == {3}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", ["nan", "inf"])
def test_logits_that_are_not_finite_are_a_message(temperature, bad):
    logits = LOGITS.clone()
    logits[2] = float(bad)
    with pytest.raises(UserError, match=f"the model's largest logit is {bad}"):
        draws(logits, temperature=temperature, count=1)


def test_top_k_leaves_k_tokens():
    assert set(draws(top_k=2)) == {1, 3}


def test_a_top_k_above_the_vocabulary_leaves_all():
    assert set(draws(top_k=100)) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.01, {1}), (0.5, {1}), (0.51, {1, 3}), (0.75, {1, 3}), (1.0, {0, 1, 2, 3})],
)
def test_top_p_keeps_the_token_that_crosses_it(top_p, kept):
    assert set(draws(top_p=top_p)) == kept


def test_top_p_counts_among_the_tokens_that_top_k_left():
    # Of the two likeliest, the first has two thirds.
    assert set(draws(top_k=2, top_p=0.6)) == {1}
    assert set(draws(top_k=2, top_p=0.7)) == {1, 3}
