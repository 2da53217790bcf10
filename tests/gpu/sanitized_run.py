"""Run every kernel once or twice, for compute-sanitizer to watch."""

import sys

import torch
from torch import Tensor

from megatron_gptx.ops.kernels import library

SHAPES = [(5, 37), (9, 512), (5, 1000), (6, 2047), (6, 2048), (3, 4096), (2, 8001), (2, 16384)]


def attend(scores: Tensor, slopes: Tensor, top_k: int, row_start: Tensor) -> None:
    """Run the kernels over kept keys, with values in pieces of 16 bytes and in others."""
    ops = torch.ops.gptx
    b, h, s, t = scores.shape
    kept, weights = ops.topk_select_(scores, slopes, top_k, row_start, True)
    for head_dim in (7, 64):
        v = torch.randn(b, h, t, head_dim, device="cuda").to(scores.dtype)
        out = ops.sum_of_kept(kept, weights, v, 0.1, 3)
        grads = ops.kept_gradients(out, v, kept, weights, 0.1, 3)
    ops.add_kept_(torch.zeros(b, h, s, t, device="cuda"), kept, grads, row_start)


def main() -> int:
    """Run forward and backward passes over rows of many sizes."""
    if reason := library.load(lambda line: sys.stderr.write(f"{line}\n")):
        sys.exit(reason)
    forward, backward = torch.ops.gptx.topk_softmax, torch.ops.gptx.topk_softmax_backward
    slopes = torch.tensor([0.1, 0.01], device="cuda")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for s, t in SHAPES:
            for top_k in (1, 8, 40):
                for tied in (False, True):
                    scores = torch.randn(1, 2, s, t, device="cuda")
                    scores = (scores.round() if tied else scores).to(dtype)
                    row_start = torch.randint(t, (1, s), device="cuda", dtype=torch.int32)
                    probs, kept, weights = forward(scores, slopes, top_k, row_start, 0.1, 3)
                    backward(probs, kept, weights, 0.1, 3)
                    attend(scores, slopes, top_k, row_start)
    torch.cuda.synchronize()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
