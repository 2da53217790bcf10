"""The continuation of a prompt by a run's newest checkpoint."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from megatron_gptx.config.errors import UserError
from megatron_gptx.config.output import GenerationConfig
from megatron_gptx.config.schema import Config
from megatron_gptx.inference.load import load_model
from megatron_gptx.inference.sampling import sample
from megatron_gptx.launcher.command import decode
from megatron_gptx.launcher.devices import local_device
from megatron_gptx.model.sequential import GPTXSequential
from megatron_gptx.tokenizer.build import load_tokenizer


def main(prog: str | None = None) -> int:
    """Print a continuation; the launcher passes the configuration."""
    parser = argparse.ArgumentParser(prog=prog, allow_abbrev=False)
    parser.add_argument("--config", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--prompt", required=True, help="text to continue")
    parser.add_argument("--output", type=Path, help="also write prompt and continuation here")
    options = parser.parse_args()
    try:
        text = complete(decode(options.config), options.prompt)
        sys.stdout.write(text + "\n")
        if options.output:
            _write(options.output, text + "\n")
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output {path} cannot be written: {error.strerror}") from None


def complete(config: Config, prompt: str) -> str:
    """Return the prompt and its continuation by the run's newest checkpoint."""
    if config.data.tokenizer is None:
        raise UserError("data.tokenizer is not set: generation needs the run's tokenizer.json")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the prompt is not valid UTF-8: {error}") from None
    tokenizer = load_tokenizer(config.data.tokenizer)
    prompt_ids = tokenizer.encode(prompt) or [tokenizer.end_of_document]
    if max(prompt_ids) >= config.model.vocab_size:
        raise UserError(
            f"{config.data.tokenizer} gives the id {max(prompt_ids)}, but model.vocab_size is "
            f"{config.model.vocab_size}; use the tokenizer the model was trained with"
        )
    device = torch.device(local_device(config))
    model, _ = load_model(config, device)
    new_ids = []
    for token in generate(model, prompt_ids, config.generation, config.model.seq_length):
        if token == tokenizer.end_of_document:
            break
        new_ids.append(token)
    return prompt + tokenizer.decode(new_ids)


@torch.inference_mode()
def generate(
    model: GPTXSequential, prompt_ids: list[int], options: GenerationConfig, window: int
) -> Iterator[int]:
    """Yield up to `max_new_tokens` ids; the model sees the last `window` tokens."""
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(options.seed)
    ids = list(prompt_ids)
    for _ in range(options.max_new_tokens):
        tokens = torch.tensor([ids[-window:]], device=device)
        ids.append(sample(model.logits(tokens)[0, -1], options, generator))
        yield ids[-1]
