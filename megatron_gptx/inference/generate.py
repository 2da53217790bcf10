"""The continuations of prompts by a run's checkpoint."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from megatron_gptx.checkpoint.manifest import Checkpoint
from megatron_gptx.checkpoint.run_tokenizer import (
    RunTokenizer,
    open_run_tokenizer,
    tokenizer_folder,
    tokenizer_of,
)
from megatron_gptx.config.errors import UserError
from megatron_gptx.config.output import GenerationConfig
from megatron_gptx.config.schema import Config
from megatron_gptx.inference.load import load_chosen
from megatron_gptx.inference.sampling import sample
from megatron_gptx.launcher.arguments import script_parser
from megatron_gptx.launcher.command_line import decode
from megatron_gptx.launcher.devices import local_device
from megatron_gptx.model.sequential import GPTXSequential
from megatron_gptx.tokenizer.base import Tokenizer
from megatron_gptx.tokenizer.build import load_tokenizer


def main(prog: str | None = None) -> int:
    """Print continuations; the launcher passes the configuration."""
    shown = []
    try:
        options = script_parser("generate.py", prog).parse(sys.argv[1:])
        texts = complete(decode(options.config), options.prompt, wanted=options.checkpoint)
        for number, text in enumerate(texts, start=1):
            title = f"[{number} of {len(options.prompt)}]\n" if len(options.prompt) > 1 else ""
            shown.append(f"{title}{text}\n")
            _print(shown[-1])
        if options.output:
            _write(Path(options.output), "".join(shown))
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


def _print(text: str) -> None:
    """Print a text; a character that the screen does not know is shown by its number."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
    sys.stdout.flush()


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output {path} cannot be written: {error.strerror}") from None


def complete(config: Config, prompts: Sequence[str], *, wanted: str | None = None) -> Iterator[str]:
    """Yield each prompt with its continuation, the same as if it were the only one.

    Args:
        config: the run.
        prompts: texts.
        wanted: the checkpoint, as `choose_checkpoint` takes it.

    Raises:
        UserError: there is no such checkpoint, no tokenizer, or a prompt cannot be continued.
    """
    device = torch.device(local_device(config))
    model, checkpoint = load_chosen(config, wanted, device)
    tokenizer, ends = _open_tokenizer(config, checkpoint)
    encoded = [_encode(prompt, tokenizer, config) for prompt in prompts]
    if not ends and not all(encoded):
        raise UserError(
            "an empty prompt begins behind the end of a document, but neither the training data "
            "nor the tokenizer names one; give a prompt"
        )
    window = config.model.seq_length
    allowed = known_ids(tokenizer, config.model.vocab_size).to(device)
    for prompt, prompt_ids in zip(prompts, encoded, strict=True):
        if len(prompt_ids) > window:
            sys.stderr.write(f"{_cut_note(len(prompt_ids), config)}\n")
        new_ids = []
        for token in generate(
            model, prompt_ids or ends[:1], config.generation, window, allowed=allowed
        ):
            if token in ends:
                break
            new_ids.append(token)
        yield join(tokenizer, prompt, prompt_ids, new_ids)


def _open_tokenizer(config: Config, checkpoint: Checkpoint) -> tuple[Tokenizer, list[int]]:
    """Return the tokenizer of the run that a checkpoint is of, and the ids that end a document."""
    run_dir = checkpoint.path.absolute().parent.parent
    found = open_run_tokenizer(run_dir)
    named = config.data.tokenizer
    if found is None and named is None:
        raise UserError(
            f"{tokenizer_folder(run_dir)} is not there, and data.tokenizer is not set: name the "
            "tokenizer that the run was trained with"
        )
    if found is None:
        found = tokenizer_of(config.data)
    elif named is not None and _is_another(named, found):
        sys.stderr.write(
            f"data.tokenizer {named} is another tokenizer than the run was trained with: the "
            f"run's own is used, {tokenizer_folder(run_dir)}\n"
        )
    ends = found.ends
    if not ends:
        with contextlib.suppress(UserError):  # then only max_new_tokens ends a text
            ends = [found.tokenizer.end_of_document]
    return found.tokenizer, [end for end in ends if end < config.model.vocab_size]


def _is_another(named: str, kept: RunTokenizer) -> bool:
    try:
        return load_tokenizer(named).fingerprint != kept.tokenizer.fingerprint
    except UserError:
        return False  # it is no longer there, and not needed


def _encode(prompt: str, tokenizer: Tokenizer, config: Config) -> list[int]:
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the prompt is not valid UTF-8: {error}") from None
    ids = tokenizer.encode(prompt)
    if max(ids, default=0) >= config.model.vocab_size:
        raise UserError(
            f"the tokenizer gives the id {max(ids)}, but model.vocab_size is "
            f"{config.model.vocab_size}; use the tokenizer the model was trained with"
        )
    return ids


def _cut_note(num_tokens: int, config: Config) -> str:
    window = config.model.seq_length
    remedy = (
        "its table of positions has no more"
        if config.model.position == "learned"
        else f"--set model.seq_length={num_tokens + config.generation.max_new_tokens} shows it all"
    )
    return f"the prompt has {num_tokens} tokens, and the model sees the last {window}: {remedy}"


def known_ids(tokenizer: Tokenizer, vocab_size: int) -> Tensor:
    """Return which of a model's ids the tokenizer knows, (v,) bool: a table may have spare rows."""
    return torch.tensor([tokenizer.has_id(number) for number in range(vocab_size)])


def join(tokenizer: Tokenizer, prompt: str, prompt_ids: list[int], new_ids: list[int]) -> str:
    """Return a prompt and the text of the ids that follow its own.

    They are decoded together: alone, the first of them would lose the space before it.
    """
    before = tokenizer.decode(prompt_ids)
    whole = tokenizer.decode([*prompt_ids, *new_ids])
    if not whole.startswith(before):
        return whole  # such a tokenizer writes a token by what comes next
    text = whole[len(before) :]
    # Some tokenizers drop a space at the end, which the model then writes.
    dropped = prompt[len(before) :] if prompt.startswith(before) else ""
    return prompt + text.removeprefix(dropped)


@torch.inference_mode()
def generate(
    model: GPTXSequential,
    prompt_ids: list[int],
    options: GenerationConfig,
    window: int,
    *,
    allowed: Tensor | None = None,
) -> Iterator[int]:
    """Yield up to `max_new_tokens` ids; the model sees the last `window` tokens.

    `allowed` (v,) bool tells the ids that may come; None allows all.
    """
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(options.seed)
    ids = list(prompt_ids)
    for _ in range(options.max_new_tokens):
        tokens = torch.tensor([ids[-window:]], device=device)
        logits = model.logits(tokens)[0, -1]
        if allowed is not None:
            logits = logits.masked_fill(~allowed, float("-inf"))
        ids.append(sample(logits, options, generator))
        yield ids[-1]
