"""The pieces in a file of SentencePiece, of which markers are made control symbols.

The file is a message of Protocol Buffers; only what is needed of its format is read here, so that
no package is. Source: sentencepiece_model.proto (ModelProto, SentencePiece).
"""

from collections.abc import Iterator

from megatron_gptx.tokenizer.markers import is_barred, is_marker

_PIECES = 1  # field of the model: one message per piece
_PIECE, _TYPE = 1, 3  # fields of a piece
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def guard_pieces(model: bytes, ends: set[str]) -> tuple[set[str], bytes]:
    """Return the markers that text could become, and the model in which it cannot.

    Args:
        model: the content of the file; SentencePiece has read it already.
        ends: names of pieces that may end a document.
    """
    guarded, parts, at = set[str](), [], 0
    for number, start, first, last in _fields(model, 0, len(model)):
        if number != _PIECES:
            continue
        name, kind = "", _NORMAL
        for inner, _, begin, end in _fields(model, first, last):
            if inner == _PIECE:
                name = model[begin:end].decode("utf-8", "replace")
            elif inner == _TYPE:
                kind = _read_varint(model, begin)[0]
        marker = name in ends or (is_marker(name) if kind == _USER_DEFINED else is_barred(name))
        if marker and kind in (_NORMAL, _USER_DEFINED):
            guarded.add(name)
            # Of a field that comes twice, the last one counts.
            piece = model[first:last] + bytes([_TYPE << 3 | _VARINT, _CONTROL])
            parts += [model[at:start], bytes([_PIECES << 3 | _BYTES]), _varint(len(piece)), piece]
            at = last
    return guarded, b"".join([*parts, model[at:]])


def _fields(message: bytes, at: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield number, place, and first and last byte of the value of each field."""
    while at < stop:
        start = at
        key, at = _read_varint(message, at)
        kind, first = key & 7, at
        if kind == _VARINT:
            _, at = _read_varint(message, at)
        elif kind == _BYTES:
            size, first = _read_varint(message, at)
            at = first + size
        else:
            at += {_FIXED64: 8, _FIXED32: 4}[kind]
        yield key >> 3, start, first, at


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
