"""The files of a tokenizer: named, in a folder, or in the cache of the Hugging Face hub."""

import os
import re
import socket
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies

from megatron_gptx.config.errors import UserError, why

Kind = Literal["json", "gpt2", "tekken", "ranks", "sentencepiece"]

# What a folder, or a model of the hub, may hold, the best first.
_NAMES = ("tokenizer.json", "vocab.json", "tekken.json", "qwen.tiktoken", "tokenizer.model")
_ENDINGS = (".json", ".model", ".tiktoken", ".txt")
# Without an owner only gpt2 and its like: tokenizer.jsn is a file whose name is mistyped.
_HUB_NAME = re.compile(r"(?:[\w-]+|[\w-][\w.-]*/[\w-][\w.-]*)(?:@[\w./-]+)?")
_HEAD_BYTES = 1 << 12
_FLAT = re.compile(rb'\s*\{\s*"(?:[^"\\]|\\.)*"\s*:\s*-?\d')
_RANK = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")


class TokenizerFiles(NamedTuple):
    """Where a tokenizer lies: one file, or GPT-2's two; and of the hub, in which revision."""

    kind: Kind
    paths: tuple[Path, ...]
    revision: str | None = None


def locate(
    given: str | os.PathLike[str], merges: str | os.PathLike[str] | None = None
) -> TokenizerFiles:
    """Return the files of a tokenizer; what they hold tells the kind, not their names.

    Args:
        given: a file, a folder, VOCABULARY,MERGES, or NAME[@REVISION] of the Hugging Face hub. The
            hub's cache is looked at first, and the hub is asked only for what is not there.
        merges: GPT-2's merges.txt; null takes the one beside the vocabulary.

    Raises:
        UserError: there is no such file, or nothing that is known.
    """
    name = os.fspath(given)
    if "," in name and merges is None and not Path(name).exists():
        name, merges = name.split(",", 1)
    file, revision = Path(name), None
    if file.is_dir():
        file = _in_folder(file)
    elif not file.exists() and _is_hub_name(name):
        file, revision = _in_hub(name)
    if not file.is_file():
        raise UserError(f"{file}: no such tokenizer file; gptx tokenizer makes one")
    kind = _kind(file)
    if merges is not None:
        if not Path(merges).is_file():
            raise UserError(f"{merges}: no such tokenizer file; gptx tokenizer makes one")
        return TokenizerFiles("gpt2", (file, Path(merges)), revision)
    return TokenizerFiles(kind, (file, _merges_of(file)) if kind == "gpt2" else (file,), revision)


def _kind(file: Path) -> Kind:
    with file.open("rb") as content:
        head = content.read(_HEAD_BYTES)
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
        if _FLAT.match(head):
            return "gpt2"
        return "tekken" if b'"pattern"' in head and b'"default_vocab_size"' in head else "json"
    if _RANK.match(head) or file.suffix == ".tiktoken":
        return "ranks"
    return "sentencepiece" if file.suffix == ".model" or head.startswith(b"\n") else "json"


def _merges_of(vocabulary: Path) -> Path:
    names = dict.fromkeys(["merges.txt", f"{vocabulary.stem.replace('vocab', 'merges')}.txt"])
    for name in names:
        if (found := vocabulary.with_name(name)).is_file() and found != vocabulary:
            return found
    raise UserError(
        f"{vocabulary}: not a tokenizer.json: a vocabulary without its merges; there is no "
        f"{' or '.join(names)} beside it: give --merge-file, or {vocabulary},MERGES"
    )


def _in_folder(folder: Path) -> Path:
    for name in _NAMES:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder}: no tokenizer file in this folder: none of {', '.join(_NAMES)}")


def _is_hub_name(name: str) -> bool:
    """Tell whether a name can be one of the hub, and is no file that is missing here."""
    if name.lower().endswith(_ENDINGS) or not _HUB_NAME.fullmatch(name):
        return False
    return "/" not in name or not Path(name).parent.is_dir()


def _reach(address: str) -> None:
    """Raise an OSError at once where there is no network: the library would try for a while."""
    host = urlsplit(address).hostname
    if host is None or getproxies():
        return  # whoever stands between finds it
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        raise OSError(f"{host}: {why(error)}.") from None


def _in_hub(given: str) -> tuple[Path, str]:
    """Return a file of a model of the hub, and the revision that it is of."""
    name, _, revision = given.partition("@")
    no_file = f"{given}: no such tokenizer file, and nothing of the Hugging Face hub"
    try:
        from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    except ImportError as error:
        raise UserError(
            f"{no_file}, which needs the package huggingface_hub: pip install 'megatron_gptx[hf]'"
        ) from error
    wanted = revision or None
    try:
        cached = (try_to_load_from_cache(name, file, revision=wanted) for file in _NAMES)
        path = next((found for found in cached if isinstance(found, str)), None)
        if path is None and not constants.HF_HUB_OFFLINE:
            _reach(constants.ENDPOINT)
        for file in _NAMES if path is None else ():
            try:
                path = hf_hub_download(name, file, revision=wanted)
                break
            except LocalEntryNotFoundError:  # there is no network
                raise
            except EntryNotFoundError:
                continue
        if path is None:
            raise UserError(f"{given}: this model of the hub has none of {', '.join(_NAMES)}")
        if Path(path).name == "vocab.json":
            hf_hub_download(name, "merges.txt", revision=Path(path).parent.name)
    except UserError:
        raise
    except Exception as error:  # the library's, the network's and the hub's
        cache = constants.HF_HUB_CACHE
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{no_file}: not in its cache {cache}, and it cannot be had from the hub: {reason} "
            f"Name a file, or run where there is a network: hf download {name} tokenizer.json"
        ) from error
    return Path(path), Path(path).parent.name
