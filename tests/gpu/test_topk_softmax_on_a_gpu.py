"""Top-k softmax on a GPU is that of the reference and of the CPU, the same in every run."""

import math

import pytest
import torch
from torch import Tensor

from megatron_gptx.config.errors import UserError
from megatron_gptx.ops.attention.topk_softmax import (
    MOST_CUDA_KEYS,
    topk_softmax,
    topk_softmax_reference,
)
from tests.numerics import assert_all_as_accurate
from tests.ops import softmax_inputs
from tests.ops.attention_inputs import SLOPES, B, H
from tests.ops.softmax_inputs import results, starts

SHAPES = [(64, 64), (7, 40), (1, 50), (1, 1), (130, 301), (1000, 1000), (2048, 2048)]
SHAPES += [(30, 2050), (17, 4097), (3, 8192), (2, MOST_CUDA_KEYS)]
FLOATS = [torch.float32, torch.bfloat16, torch.float16]
TOP_K = [1, 8, 20, 32, 33, 3000]


def random_scores(s: int, t: int, dtype: torch.dtype, device, levels: int = 0) -> Tensor:
    """Return such scores on a device."""
    scores = softmax_inputs.random_scores(s, t, dtype, levels).detach().to(device)
    return scores if levels else scores.requires_grad_()


def options_for(name: str, s: int, t: int, device) -> dict:
    """Return keyword arguments on a device."""
    options: dict = {} if name == "plain" else {"slopes": (SLOPES * 0.3).to(device)}
    if name in ("documents", "dropout"):
        options["row_start"] = starts(s, t).to(device)
    if name == "dropout":
        options |= {"dropout_p": 0.3, "seed": 2**40 + 5}
    return options


def fused(scores: Tensor, top_k: int, **options) -> Tensor:
    return topk_softmax(scores, top_k, **options, backend="fused")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ["plain", "alibi", "documents", "dropout"])
@pytest.mark.parametrize(("s", "t"), SHAPES)
def test_it_is_as_accurate_as_the_reference(gpu, s, t, name, dtype):
    options = options_for(name, s, t, gpu)
    scores = random_scores(s, t, dtype, gpu)
    widened = scores.detach().double().requires_grad_()
    for top_k in TOP_K:
        actual = results(fused, scores, top_k, **options)
        reference = results(topk_softmax_reference, scores, top_k, **options)
        exact = results(topk_softmax_reference, widened, top_k, **options)
        assert [(x.dtype, x.shape) for x in actual] == [(x.dtype, x.shape) for x in reference]
        assert_all_as_accurate(actual, reference, exact)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("levels", [0, 1, 3, 50])
@pytest.mark.parametrize(("s", "t"), SHAPES)
def test_it_keeps_the_cpus_keys(gpu, s, t, levels, dtype):
    scores = random_scores(s, t, dtype, gpu, levels)
    for name in ("plain", "alibi", "documents"):
        options = options_for(name, s, t, "cpu")
        slopes, row_start = options.get("slopes"), options.get("row_start")
        on_gpu = [None if x is None else x.to(gpu) for x in (slopes, row_start)]
        for top_k in TOP_K:
            _, kept, weights = torch.ops.gptx.topk_softmax(
                scores, on_gpu[0], top_k, on_gpu[1], 0.0, 0
            )
            expected = torch.ops.gptx.topk_softmax(scores.cpu(), slopes, top_k, row_start, 0.0, 0)
            assert torch.equal(kept.cpu(), expected[1])
            assert (weights.cpu() - expected[2]).abs().max() < 1e-6


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("t", [150, 2100])
def test_scores_that_are_no_numbers_or_infinite_are_the_cpus(gpu, t, bad):
    scores = random_scores(5, t, torch.float32, "cpu").detach()
    scores[1, 2, 3, 7] = scores[0, 1, 0, t - 3] = bad
    scores[0, 0, 2] = -torch.inf
    for top_k in TOP_K:
        expected = torch.ops.gptx.topk_softmax(scores, None, top_k, None, 0.3, 5)
        actual = torch.ops.gptx.topk_softmax(scores.to(gpu), None, top_k, None, 0.3, 5)
        for x, y in zip(actual, expected, strict=True):
            assert torch.allclose(x.cpu(), y, rtol=1e-5, atol=1e-7, equal_nan=True)


def test_repeated_runs_and_runs_beside_each_other_give_the_same_bits(gpu):
    scores = random_scores(512, 2048, torch.bfloat16, gpu)
    options = options_for("dropout", 512, 2048, gpu)
    expected = results(fused, scores, 8, **options)
    streams = [torch.cuda.Stream(gpu) for _ in range(4)]
    torch.cuda.synchronize(gpu)
    found = []
    for turn in range(20):
        with torch.cuda.stream(streams[turn % len(streams)]):
            found.append(results(fused, scores, 8, **options))
    torch.cuda.synchronize(gpu)
    assert all(torch.equal(x, y) for run in found for x, y in zip(run, expected, strict=True))


def test_it_works_on_the_stream_that_is_current(gpu):
    stream = torch.cuda.Stream(gpu)
    scores = torch.zeros(1, 1, 2000, 2000, device=gpu)
    expected = fused(scores.add(1).tril(), 8)
    torch.cuda.synchronize(gpu)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # whoever does not wait for it reads what is not there yet
        late = scores.add_(1).tril()
        actual = fused(late, 8)
    stream.synchronize()
    assert torch.equal(actual, expected)


def test_scores_may_lie_anyhow_in_memory(gpu):
    spread = torch.randn(B, 5, H, 160, device=gpu)[..., ::2].transpose(1, 2)
    shifted = torch.randn(B * H * 5 * 80 + 1, device=gpu)[1:].view(B, H, 5, 80)
    for scores in (spread, shifted):
        expected = fused(scores.clone(memory_format=torch.contiguous_format), 5)
        assert torch.equal(fused(scores, 5), expected)


def test_a_cuda_graph_replays_it(gpu):
    scores = random_scores(64, 300, torch.bfloat16, gpu).detach()
    expected = fused(scores * 2, 8)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        probs = fused(scores, 8)
    scores *= 2
    graph.replay()
    torch.cuda.synchronize(gpu)
    assert torch.equal(probs, expected)


def test_longer_rows_fall_back_or_are_refused(gpu):
    scores = torch.zeros(1, 1, 1, MOST_CUDA_KEYS + 1, device=gpu)
    assert topk_softmax(scores, 3).count_nonzero() == 3
    with pytest.raises(UserError, match=f"up to {MOST_CUDA_KEYS} keys"):
        fused(scores, 3)


def test_every_gpu_is_served(gpu):
    for index in range(torch.cuda.device_count()):
        scores = random_scores(20, 20, torch.float32, torch.device("cuda", index)).detach()
        assert torch.equal(fused(scores, 3).cpu(), fused(scores.to(gpu), 3).cpu())


def test_pytorch_finds_nothing_wrong_with_the_op(gpu):
    scores = random_scores(6, 9, torch.float32, gpu)
    arguments = (scores, SLOPES.to(gpu), 3, None, 0.2, 7)
    torch.library.opcheck(torch.ops.gptx.topk_softmax.default, arguments)
