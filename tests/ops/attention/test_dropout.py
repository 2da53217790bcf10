"""Which attention weights are dropped is a function of seed and place alone, and random enough."""

import pytest
import torch

from megatron_gptx.ops.attention.dropout import draw_seed, philox, survival

KEYS = torch.arange(200).expand(2, 3, 200, 200)

# The published vectors of Philox-4x32-10: (key words, counter words, first word of the result).
KNOWN = [
    ((0, 0), (0, 0, 0, 0), 0x6627E8D5),
    ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 4, 0x408F276D),
    ((0xA4093822, 0x299F31D0), (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), 0xD16CFE09),
]


@pytest.mark.parametrize(("key", "counter", "word"), KNOWN)
def test_the_random_bits_are_those_of_the_paper(key, counter, word):
    j, i, head, batch = (torch.tensor([c]) for c in counter)
    assert philox(key[1] << 32 | key[0], batch, head, i, j).item() == word


@pytest.mark.parametrize("dropout_p", [0.1, 0.5, 0.9])
def test_the_asked_share_is_dropped_and_the_mean_is_kept(dropout_p):
    factors = survival(dropout_p, 5, KEYS, 200)
    # 240,000 draws: five standard deviations of their mean.
    spread = 5 * (dropout_p * (1 - dropout_p) / factors.numel()) ** 0.5
    assert abs((factors == 0).float().mean().item() - dropout_p) < spread
    assert factors.unique().tolist() == [0, pytest.approx(1 / (1 - dropout_p))]


def test_every_part_of_the_place_and_the_seed_count():
    first = survival(0.5, 5, KEYS, 200)
    assert torch.equal(first, survival(0.5, 5, KEYS, 200))
    assert not torch.equal(first, survival(0.5, 6, KEYS, 200))
    assert not torch.equal(first, survival(0.5, 5 + 2**32, KEYS, 200))
    for along in range(4):
        assert not torch.equal(first, first.roll(1, along))


def test_the_last_queries_alone_drop_what_they_drop_among_all():
    assert torch.equal(
        survival(0.5, 5, KEYS[:, :, -3:], 200), survival(0.5, 5, KEYS, 200)[:, :, -3:]
    )


def test_the_seed_comes_from_torchs_generator():
    torch.manual_seed(1)
    first, second = draw_seed(), draw_seed()
    torch.manual_seed(1)
    assert (draw_seed(), first != second) == (first, True)
