"""Run every kernel once or twice, for compute-sanitizer to watch."""

import sys

import torch

from megatron_gptx.ops import library

SHAPES = [(5, 37), (9, 512), (5, 1000), (6, 2047), (6, 2048), (3, 4096), (2, 8001), (2, 16384)]


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
    torch.cuda.synchronize()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
