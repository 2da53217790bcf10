"""Chats written out by a template, and which of their tokens are to be learned: the answers.

What messages say never becomes a marker: the template writes placeholders, its result is divided at
the markers, and only then the contents are put in.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import numpy as np
from jinja2 import meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from megatron_gptx.config.batch import IGNORE
from megatron_gptx.config.errors import UserError, why
from megatron_gptx.tokenizer.base import Batch, Tokenizer
from megatron_gptx.tokenizer.engine import EncodeBatch

_TEMPLATE, _CONFIG = "chat_template.jinja", "tokenizer_config.json"
_NAMED = ("bos_token", "eos_token", "pad_token", "unk_token")
_ANSWERS = "assistant"
# White space around it shows whether the template strips a content; no template writes this one.
_EDGE = "\u2003"
_LIKE_MARKERS = re.compile(r"<\|[\w.:/-]+\|>")
_PLACE = re.compile(f"({_EDGE}?)\ue000(\\d+)\ue001({_EDGE}?)")


def read_template(path: str) -> dict[str, str]:
    """Return a chat's `template`, and the tokens that it writes by name.

    Args:
        path: a template of Jinja, a tokenizer_config.json that has one, or a folder with either.

    Raises:
        UserError: there is none, or it names tokens that no tokenizer_config.json beside it tells.
    """
    file = Path(path)
    if file.is_dir():
        file = file / (_TEMPLATE if (file / _TEMPLATE).is_file() else _CONFIG)
    config = file if file.suffix == ".json" else file.with_name(_CONFIG)
    try:
        known = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
        source = known.get("chat_template") if file == config else file.read_text(encoding="utf-8")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: cannot be read as a chat template: {why(error)}") from error
    if isinstance(source, list):  # several by name
        source = next((each["template"] for each in source if each["name"] == "default"), None)
    if not isinstance(source, str):
        raise UserError(f"{path}: no chat template: name a file of Jinja, or a {_CONFIG}")
    try:
        written = meta.find_undeclared_variables(_environment().parse(source))
    except jinja2.TemplateError as error:
        raise UserError(f"{path}: not a template of Jinja: {error}") from error
    tokens = {}
    for name in sorted(written & set(_NAMED)):
        token = known.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if not isinstance(token, str):
            raise UserError(f"{path}: the template writes {name}, which no {_CONFIG} beside it has")
        tokens[name] = token
    return {"template": source, **tokens}


def unknown_markers(chat: Mapping[str, str], known: frozenset[str]) -> list[str]:
    """Return what stands in a template like a marker, or is a token by name, and is none."""
    named = [token for name, token in chat.items() if name != "template"]
    found = [*_LIKE_MARKERS.findall(chat["template"]), *named]
    return [token for token in dict.fromkeys(found) if token not in known]


class ChatTemplate:
    """Turns messages into segments: markers, and text between them, learned or not.

    Args:
        chat: what `read_template` returned.
        markers: what is a token of its own where the template writes it.
        forbidden: what no content may spell.
    """

    def __init__(
        self, chat: Mapping[str, str], markers: frozenset[str], forbidden: frozenset[str]
    ) -> None:
        self._template = _environment().from_string(chat["template"])
        self._tokens = {name: token for name, token in chat.items() if name != "template"}
        self._forbidden = forbidden
        longest_first = sorted(markers, key=len, reverse=True)
        self._markers = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")

    def segments(self, messages: Any) -> str:
        """Return a chat as JSON, "" where it has no messages.

        It is [whether an answer ends it, segments], and each of them [whether it is a marker,
        whether it is learned, its text].

        Raises:
            ValueError: these are no messages, or the template cannot write them so that the answers
                can be told.
        """
        roles, contents = self._check(messages)
        if not roles:
            return ""
        whole = self._write(roles, contents)
        at = 0
        segments: list[tuple[bool, bool, str]] = []
        for number, role in enumerate(roles):
            if role != _ANSWERS:
                continue
            start = self._write(roles[:number], contents, prompt=True)
            if not whole.startswith(start):
                start = self._write(roles[:number], contents)
            stop = self._write(roles[: number + 1], contents)
            if not (whole.startswith(start) and whole.startswith(stop) and start < stop):
                raise ValueError(
                    f"the template writes message {number + 1} otherwise when others follow: the "
                    "answers cannot be told"
                )
            segments += self._divide(whole[at : len(start)], contents, learned=False)
            segments += self._divide(whole[len(start) : len(stop)], contents, learned=True)
            at = len(stop)
        if not segments:
            raise ValueError(f"no message of the {_ANSWERS}: nothing to learn")
        segments += self._divide(whole[at:], contents, learned=False)
        return json.dumps([roles[-1] == _ANSWERS, segments], ensure_ascii=False)

    def _check(self, messages: Any) -> tuple[list[str], list[str]]:
        if not isinstance(messages, list):
            raise ValueError("not a list of messages")
        roles, contents = [], []
        for number, message in enumerate(messages, 1):
            if not isinstance(message, dict):
                raise ValueError(f"message {number} is not an object")
            role, content = message.get("role"), message.get("content")
            if not isinstance(role, str) or not re.fullmatch(r"\w+", role):
                raise ValueError(f"message {number} has no role")
            if not isinstance(content, str):
                raise ValueError(f"the content of message {number} is not a string")
            if message.get("tool_calls") or message.get("function_call"):
                raise ValueError(f"message {number} calls tools, which is not known here")
            for token in self._forbidden:
                if token in content:
                    raise ValueError(f"spells out the special token {token!r}")
            roles.append(role)
            contents.append(content)
        return roles, contents

    def _write(self, roles: Sequence[str], contents: Sequence[str], *, prompt: bool = False) -> str:
        messages = [
            {"role": role, "content": content and f"{_EDGE}\ue000{number}\ue001{_EDGE}"}
            for number, (role, content) in enumerate(zip(roles, contents, strict=False))
        ]
        try:
            return self._template.render(
                messages=messages, add_generation_prompt=prompt, tools=None, **self._tokens
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError) as error:
            raise ValueError(f"the template refuses it: {error}") from None

    def _divide(
        self, written: str, contents: Sequence[str], *, learned: bool
    ) -> Iterator[tuple[bool, bool, str]]:
        """Yield the segments of a piece; nothing behind an answer's last marker is learned."""

        def content(place: "re.Match[str]") -> str:
            text = contents[int(place[2])]
            text = text if place[1] else text.lstrip()
            return text if place[3] else text.rstrip()

        parts = self._markers.split(written)
        last = len(parts) - 2 if len(parts) > 1 else 0
        for number, part in enumerate(parts):
            if part:
                is_marker = number % 2 == 1
                text = part if is_marker else _PLACE.sub(content, part)
                if text:
                    yield is_marker, learned and number <= last, text


class ChatEncoder:
    """Encodes segments to ids, or to the labels that say what of them is learned.

    Args:
        tokenizer: which ids the markers have.
        encode: what encodes text.
        labels: give labels.
        end: the id that ends a document, learned after an answer; null ends none.
    """

    def __init__(
        self, tokenizer: Tokenizer, encode: EncodeBatch, *, labels: bool, end: int | None
    ) -> None:
        self._ids = {token: tokenizer.id_of(token) for token in tokenizer.special_tokens}
        self._encode, self._labels, self._end = encode, labels, end

    def encode_batch(self, chats: Sequence[str]) -> Batch:
        """Return the ids, or the labels, of several chats."""
        parsed = [json.loads(chat) for chat in chats]
        texts = [text for _, chat in parsed for is_marker, _, text in chat if not is_marker]
        encoded = self._encode(texts)
        pieces = iter(np.split(encoded.ids.astype(np.int64), np.cumsum(encoded.lengths)[:-1]))
        rows = [self._row(chat, pieces, answered) for answered, chat in parsed]
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        return Batch(np.concatenate([*rows, np.zeros(0, np.int64)]), lengths)

    def _row(self, chat: list[Any], pieces: Iterator[Any], answered: bool) -> Any:
        row = []
        for is_marker, learned, text in chat:
            ids = np.array([self._ids[text]]) if is_marker else next(pieces)
            row.append(np.full_like(ids, IGNORE) if self._labels and not learned else ids)
        if self._end is not None:
            row.append(np.array([self._end if answered or not self._labels else IGNORE]))
        return np.concatenate(row)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _refuse
    return environment


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
