"""Ranks of tiktoken, and what their files leave unsaid: how to split, which tokens are special.

Sources: the tokenizers that were published with Llama 3 and Qwen; tekken.json says both itself.
"""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import orjson

from megatron_gptx.config.errors import UserError

# Words, numbers of up to N digits, other characters, line ends, white space.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3_RANKS, _QWEN_RANKS = 128_000, 151_643
_LLAMA3_SPECIAL, _QWEN_EXTRA = 256, 205


def read_ranks(path: Path) -> tuple[dict[str, Any], str | None]:
    """Return what tiktoken's Encoding needs for a file of ranks, or for a tekken.json.

    With it comes gigatoken's name for how the text is split, where the file's name does not tell.

    Raises:
        UserError: the file holds no ranks, or ranks of which nothing else is known.
    """
    try:
        if path.read_bytes()[:64].lstrip().startswith(b"{"):
            return _tekken(path), None
        pairs = [line.split() for line in path.read_bytes().splitlines() if line]
        ranks = {base64.b64decode(token): int(rank) for token, rank in pairs}
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(f"{path}: not a file of tiktoken's ranks: {error}") from error
    special = {_LLAMA3_RANKS: _llama3_special, _QWEN_RANKS: _qwen_special}.get(len(ranks))
    if special is None:
        return _named(path, ranks), None
    digits, pretokenizer = ("{1,3}", "gpt4") if len(ranks) == _LLAMA3_RANKS else ("", "qwen2")
    parameters = {
        "name": path.stem,
        "pat_str": _SPLIT.format(digits=digits),
        "mergeable_ranks": ranks,
        "special_tokens": {name: len(ranks) + i for i, name in enumerate(special())},
    }
    return parameters, pretokenizer


def _llama3_special() -> Iterator[str]:
    named = ["begin_of_text", "end_of_text", None, None, None, None]
    named += ["start_header_id", "end_header_id", None, "eot_id"]
    reserved = 0
    for number in range(_LLAMA3_SPECIAL):
        name = named[number] if number < len(named) else None
        if name is None:
            name, reserved = f"reserved_special_token_{reserved}", reserved + 1
        yield f"<|{name}|>"


def _qwen_special() -> Iterator[str]:
    yield from ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    yield from (f"<|extra_{number}|>" for number in range(_QWEN_EXTRA))


def _named(path: Path, ranks: dict[bytes, int]) -> dict[str, Any]:
    """Return what tiktoken itself knows by an encoding's name, which must be the file's."""
    from tiktoken_ext import openai_public

    make = openai_public.ENCODING_CONSTRUCTORS.get(path.stem)
    if make is None or path.stem == "gpt2":
        names = ", ".join(sorted(set(openai_public.ENCODING_CONSTRUCTORS) - {"gpt2"}))
        raise UserError(
            f"{path}: {len(ranks):,} ranks of tiktoken: the file's name must tell the encoding "
            f"that it belongs to: {names}; without it, only those of Llama 3 ({_LLAMA3_RANKS:,} "
            f"ranks) and Qwen ({_QWEN_RANKS:,}) are known"
        )
    # What makes an encoding would download the ranks: it gets the file's instead.
    with patch.object(openai_public, "load_tiktoken_bpe", lambda *_, **__: ranks):
        parameters = make()
    parameters.pop("explicit_n_vocab", None)
    return parameters


def _tekken(path: Path) -> dict[str, Any]:
    """Return Mistral's tekken.json: special tokens come first, ranks count from behind them."""
    content = orjson.loads(path.read_bytes())
    config = content["config"]
    num_special = config["default_num_special_tokens"]
    words = content["vocab"][: config["default_vocab_size"] - num_special]
    # Older files do not name them; what these three are, all of Mistral's tokenizers share.
    named = {"<unk>": 0, "<s>": 1, "</s>": 2}
    if content.get("special_tokens"):
        named = {entry["token_str"]: entry["rank"] for entry in content["special_tokens"]}
    taken = set(named.values())
    rest = {f"<SPECIAL_{number}>": number for number in range(num_special) if number not in taken}
    return {
        "name": path.stem,
        "pat_str": config["pattern"],
        "mergeable_ranks": {
            base64.b64decode(word["token_bytes"]): word["rank"] + num_special for word in words
        },
        "special_tokens": {**named, **rest},
    }
