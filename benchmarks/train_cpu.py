"""Measure training on this CPU, in tokens per second, with and without our kernels.

Ours is what `train.py` runs: DeepSpeed's pipeline engine with one stage and one rank, with the
kernels, in plain PyTorch, and in plain PyTorch with attention as its definition reads. Beside them
stands x-transformers in a plain loop with the same switches, sizes, batches, clipping and
optimizer. All take turns in one process, so that whatever else the machine does slows all: the
ratios mean more than the speeds.
Beside other busy programs set OMP_WAIT_POLICY=passive: threads that spin make a lottery of it; on
one thread, --clock cpu leaves those programs out. --isa avx2 shows what a CPU without AVX-512 does.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from machine import CLOCKS, add_options, restart_with
from torch import Tensor, nn
from torch.nn import functional
from training_runs import (
    ONE_RANK,
    WARMUP_STEPS,
    Step,
    as_only_rank,
    loss_fall,
    random_steps,
)
from x_transformers import Decoder, TransformerWrapper
from x_transformers.x_transformers import LayerScale

from megatron_gptx.config.errors import UserError
from megatron_gptx.config.load import load
from megatron_gptx.config.model import ModelConfig
from megatron_gptx.config.ops import Backend, OpsConfig
from megatron_gptx.config.schema import Config
from megatron_gptx.distributed.process import Process
from megatron_gptx.files.write import write_aside
from megatron_gptx.ops.attention.dispatch import attention_reference
from megatron_gptx.ops.kernels import library

# One rank, and what x-transformers has not or means otherwise.
SETTINGS = f"""\
{ONE_RANK} precision=fp32
training.checkpoint_activations=0 model.activation=gelu model.biases=true model.tied_head=false
model.dropout=0 model.attention.dropout=0"""

DIFFERENCES = """\
x-transformers differs: its attention and norms have no biases, its carried scores contain ALiBi;
for want of ReZero, its LayerScale of width 1 stands behind every branch, and no norm before it"""


class Side(NamedTuple):
    """One of the four; `train` updates the weights once and returns the loss before that."""

    name: str
    model: nn.Module
    train: Callable[[Step, int], float]

    @property
    def num_parameters(self) -> int:
        """How many numbers are trained."""
        return sum(parameter.numel() for parameter in self.model.parameters())


def build_ours(config: Config, process: Process, backend: Backend) -> Side:
    """Return the engine of a training run."""
    # DeepSpeed prints while it is imported: not before the output goes to a file.
    from megatron_gptx.training.build import build_engine

    config = config.model_copy(update={"ops": OpsConfig(backend=backend)})
    engine = build_engine(config, process, say=print)

    def train(step: Step, number: int) -> float:
        return engine.train_step(step, step=number, lr=config.optimizer.lr).loss

    return Side(f"ours, {backend}", engine.deepspeed.module, train)


def as_defined(side: Side) -> Side:
    """Return the same training with attention as `attention_reference` defines it."""

    def eager(q: Tensor, k: Tensor, v: Tensor, *, reuse_scores: bool, backend: str, **options: Any):
        return attention_reference(q, k, v, **options)

    def train(step: Step, number: int) -> float:
        with patch("megatron_gptx.model.attention.attention", eager):
            return side.train(step, number)

    return Side("ours, as defined", side.model, train)


def build_theirs(config: Config) -> Side:
    """Return the same training with nothing but x-transformers and PyTorch."""
    model, options = their_model(config.model), config.optimizer
    decay = [p for name, p in model.named_parameters() if p.ndim == 2 and "emb" not in name]
    keep = [p for name, p in model.named_parameters() if p.ndim != 2 or "emb" in name]
    groups: list[dict[str, Any]] = [
        {"params": decay, "weight_decay": options.weight_decay},
        {"params": keep, "weight_decay": 0.0},
    ]
    betas = options.betas[0], options.betas[1]
    optimizer = torch.optim.AdamW(groups, options.lr, betas, options.eps, fused=True)

    def train(step: Step, number: int) -> float:
        total = 0.0
        for micro_batch in step:
            logits = model(micro_batch.tokens).flatten(0, 1)
            loss = functional.cross_entropy(logits, micro_batch.labels.flatten())
            (loss / len(step)).backward()
            total += loss.item() / len(step)
        if options.gradient_clipping is not None:
            nn.utils.clip_grad_norm_(model.parameters(), options.gradient_clipping)
        optimizer.step()
        optimizer.zero_grad()
        return total

    return Side("x-transformers", model, train)


def their_model(model: ModelConfig) -> TransformerWrapper:
    """Return x-transformers' model with our switches, sizes and initial distribution."""
    decoder = Decoder(
        dim=model.hidden_size,
        depth=model.num_layers,
        heads=model.num_heads,
        attn_dim_head=model.head_dim,
        attn_sparse_topk=model.attention.top_k,
        residual_attn=model.attention.residual_scores,
        alibi_pos_bias=model.position == "alibi",
        alibi_num_heads=model.num_heads,
        macaron=model.macaron,
        pre_norm=model.residual != "post_norm",
        ff_mult=model.ffn_width / model.hidden_size,
    )
    if model.residual == "rezero":
        for norms, _, _ in decoder.layers:
            norms[0], norms[1] = None, LayerScale(nn.Identity(), dim=1)
    wrapper = TransformerWrapper(
        num_tokens=model.vocab_size,
        max_seq_len=model.seq_length,
        attn_layers=decoder,
        use_abs_pos_emb=model.position == "learned",
    )
    for parameter in wrapper.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=model.init_std)
    return wrapper


def compare(config: Config, options: argparse.Namespace, process: Process) -> None:
    """Check that all sides are alike and learn, time them in turns, show and write the result."""
    if reason := library.load(print):
        raise UserError(f"the kernels cannot run here: {reason}")
    torch.set_num_threads(options.threads)
    torch.manual_seed(config.training.seed)
    show = partial(print, file=process.console)
    clock = CLOCKS[options.clock]
    show(f"{library.cpu_capability()}, clock {options.clock}, threads {options.threads}")
    show(f"PyTorch {torch.__version__}, {SETTINGS}\n{DIFFERENCES}")
    sides = [
        build_ours(config, process, "fused"),
        build_ours(config, process, "reference"),
        as_defined(build_ours(config, process, "reference")),
        build_theirs(config),
    ]
    steps = random_steps(config, WARMUP_STEPS + options.pairs * options.steps_per_block)
    for side in sides:
        losses = [side.train(steps[number], number) for number in range(WARMUP_STEPS)]
        fall = loss_fall(side.name, losses)
        show(f"{side.name:<15}{side.num_parameters:>11,} parameters, {fall}")

    tokens = options.steps_per_block * config.batch.global_size * config.model.seq_length
    speeds: dict[str, list[float]] = {side.name: [] for side in sides}
    for first in range(WARMUP_STEPS, len(steps), options.steps_per_block):
        for side in sides:
            started_at = clock()
            for number in range(first, first + options.steps_per_block):
                side.train(steps[number], number)
            speeds[side.name].append(tokens / (clock() - started_at))

    ratios = {}
    own = sides[0].name
    for name, values in speeds.items():
        turns = [ours / theirs for ours, theirs in zip(speeds[own], values, strict=True)]
        ratios[name] = median(turns)
        spread = f"{ratios[name]:8.2f}x ({min(turns):.2f} to {max(turns):.2f} over {len(turns)})"
        show(f"{name:<16}{median(values):>10,.0f} tokens/s{'' if name == own else spread}")
    if options.output:
        result: dict[str, object] = {"isa": library.cpu_capability(), "clock": options.clock}
        result |= {"threads": options.threads, "tokens_per_second": speeds, "ratios": ratios}
        result["parameters"] = {side.name: side.num_parameters for side in sides}
        write_aside(options.output, json.dumps(result, indent=2) + "\n")


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path, nargs="?", default=Path("configs/quickstart.yml"))
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--pairs", type=int, default=7, help="turns of each side; default: 7")
    parser.add_argument("--steps-per-block", type=int, default=3, help="default: 3")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, help="JSON file for the result")
    add_options(parser)
    options = parser.parse_args(argv)
    restart_with(options.isa)
    try:
        config = load([options.config], [*options.set, *SETTINGS.split()])
    except UserError as error:
        parser.exit(2, f"{error}\n")
    as_only_rank(partial(compare, config, options), accelerator="cpu")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
