"""Reads from a tokenizer.json which bytes each id stands for. Knows nothing of how a text is cut.

Two families of vocabularies say so, told apart by their decoder. Byte-level ones write bytes in an alphabet of their
own. SentencePiece's write a visible character for the space, and, with byte fallback, `<0x0A>` for a byte. The ids are
those of the file.
"""

# V = ids of the table

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from preceptor_server.alignment.byte_level import from_alphabet
from preceptor_server.alignment.tokenizer_file import Json, objects_of, parse_tokenizer, part_of, text_of
from preceptor_server.alignment.types import TokenKind, TokenTable
from preceptor_server.errors import InvalidTokenizerError

_SPARSEST = 4
"""Ids may be as many times as many as tokens: holes are padding, and a table holds an entry for every id ..."""
_ALWAYS_ALLOWED = 1 << 20
"""... except that this many are allowed to any tokenizer: some 10 MB."""

_BYTES_OF_TEXT = frozenset(range(256)) - {0xC0, 0xC1, *range(0xF5, 0x100)}
"""Those that occur in UTF-8."""
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")

TokenBytes = Callable[[str], bytes]
"""The bytes of a token, given as the vocabulary writes it."""


@dataclass(frozen=True, slots=True)
class _Family:
    """How a vocabulary writes bytes."""

    bytes_of_piece: TokenBytes
    bytes_of_added: TokenBytes
    writes_bytes: bool
    """Whether the tokens of single bytes write any text that other tokens do not."""


@dataclass(slots=True)
class _Entries:
    """What the file says of each id."""

    pieces: dict[int, str]
    texts: dict[int, str] = field(default_factory=dict)
    """Added tokens that are text."""
    specials: dict[int, str] = field(default_factory=dict)
    unknown_id: int | None = None
    """What the model writes for text that the vocabulary lacks."""


def read_token_table(tokenizer_json: str, *, vocabulary_size: int = 0) -> TokenTable:
    """The table of a tokenizer.json; with `vocabulary_size`, padded to that many ids. Raises InvalidTokenizerError."""
    return token_table_of(parse_tokenizer(tokenizer_json), vocabulary_size=vocabulary_size)


def token_table_of(parts: Json, *, vocabulary_size: int = 0) -> TokenTable:
    """The table of a tokenizer.json that is parsed already."""
    model = part_of(parts, "model")
    if model is None:
        raise InvalidTokenizerError("is not a tokenizer.json: it has no 'model'")
    family = _family(part_of(parts, "decoder"), falls_back=model.get("byte_fallback") is True)
    _refuse_affixes(model)
    entries = _Entries(_pieces_by_id(model))
    _put_added(entries, objects_of(parts, "added_tokens"))
    _put_unknown(entries, model)
    size = _size(entries, vocabulary_size)
    try:
        return _build(entries, family, size)
    except UnicodeEncodeError as error:
        raise InvalidTokenizerError("a token holds half of a surrogate pair, which is no text") from error


def padded(table: TokenTable, *, size: int) -> TokenTable:
    """The table with `size` ids: padding is added, or left out. Raises InvalidTokenizerError where text is left out."""
    if (table.kinds_V[size:] == TokenKind.TEXT).any():
        raise _beyond_size(table.size - 1, size)
    kept = table.kinds_V[:size]
    offsets_V1 = np.full(size + 1, len(table.blob), np.int64)
    offsets_V1[: len(kept) + 1] = table.offsets_V1[: len(kept) + 1]
    return TokenTable(
        kinds_V=np.concatenate([kept, np.zeros(size - len(kept), np.uint8)]),
        blob=table.blob,
        offsets_V1=offsets_V1,
        special_texts={token_id: text for token_id, text in table.special_texts.items() if token_id < size},
        unknown_id=table.unknown_id if table.unknown_id is not None and table.unknown_id < size else None,
    )


def _family(decoder: Json | None, *, falls_back: bool) -> _Family:
    if decoder is None:
        raise _unsupported("it has no decoder, which would say what bytes a token stands for")
    steps = list(_steps(decoder))
    kinds = [text_of(step, "type") for step in steps]
    unknown = sorted(set(kinds) - {"ByteLevel", "Metaspace", "Replace", "ByteFallback", "Fuse", "Strip"})
    if unknown:
        raise _unsupported(f"its decoder has the step {unknown[0]}, which hides the bytes that a token stands for")
    if "ByteLevel" in kinds:
        if not set(kinds) <= {"ByteLevel", "Fuse", "Strip"}:
            raise _unsupported("its decoder mixes ByteLevel with other ways to write bytes")
        return _Family(from_alphabet, str.encode, writes_bytes=True)
    spaces = [_space_sign(step) for step in steps if step["type"] in ("Replace", "Metaspace")]
    if not spaces:
        raise _unsupported("its decoder does not say how a space is written")
    return _sentencepiece(spaces[0], has_byte_tokens="ByteFallback" in kinds, falls_back=falls_back)


def _steps(decoder: Json) -> Iterable[Json]:
    if decoder.get("type") != "Sequence":
        return [decoder]
    steps = objects_of(decoder, "decoders")
    if any(step.get("type") == "Sequence" for step in steps):
        raise _unsupported("its decoder has sequences inside a sequence")
    return steps


def _space_sign(step: Json) -> str:
    """The character that stands for a space."""
    if step["type"] == "Metaspace":
        return text_of(step, "replacement", default="▁")
    pattern = part_of(step, "pattern") or {}
    if text_of(step, "content") != " " or not pattern.get("String"):
        raise _unsupported("its decoder replaces text by something else than a space")
    return text_of(pattern, "String")


def _sentencepiece(space: str, *, has_byte_tokens: bool, falls_back: bool) -> _Family:
    def bytes_of_added(token: str) -> bytes:
        return token.replace(space, " ").encode()

    def bytes_of_piece(token: str) -> bytes:
        byte = _BYTE_TOKEN.fullmatch(token) if token.startswith("<0x") else None
        return bytes([int(byte[1], 16)]) if byte else token.replace(space, " ").encode()

    of_piece = bytes_of_piece if has_byte_tokens else bytes_of_added
    return _Family(of_piece, bytes_of_added, writes_bytes=has_byte_tokens and falls_back)


def _refuse_affixes(model: Json) -> None:
    """They mark a piece by its place in a word, so its bytes cannot be told from it alone."""
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise _unsupported(f"its model has a {name}: what bytes a token stands for depends on its place")
    if model.get("type") == "WordPiece":
        raise _unsupported("its model is WordPiece: what bytes a token stands for depends on its place")


def _pieces_by_id(model: Json) -> dict[int, str]:
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, list):
        if not all(isinstance(entry, list) and entry and isinstance(entry[0], str) for entry in vocabulary):
            raise InvalidTokenizerError("its vocabulary is a list, but not of pieces with their scores")
        pieces = {token_id: entry[0] for token_id, entry in enumerate(vocabulary)}
        if len(set(pieces.values())) < len(pieces):
            raise InvalidTokenizerError("its vocabulary gives several ids to one token")
        return pieces
    if not isinstance(vocabulary, dict):
        raise InvalidTokenizerError("is not a tokenizer.json: its model has no vocabulary")
    _check_ids(vocabulary)
    pieces = {token_id: piece for piece, token_id in vocabulary.items()}
    if len(pieces) < len(vocabulary):
        raise InvalidTokenizerError("its vocabulary gives one id to several tokens")
    return pieces


def _check_ids(vocabulary: Mapping[str, object]) -> None:
    for token, token_id in vocabulary.items():
        if type(token_id) is not int or token_id < 0:
            raise InvalidTokenizerError(f"the id of {token[:40]!r} is not a number from 0 on")


def _put_added(entries: _Entries, added_tokens: Sequence[Json]) -> None:
    ids = {piece: token_id for token_id, piece in entries.pieces.items()} if added_tokens else {}
    for added in added_tokens:
        content, token_id = text_of(added, "content"), added.get("id")
        _check_ids({content: token_id})
        assert isinstance(token_id, int), "checked above"
        if ids.setdefault(content, token_id) != token_id:
            raise InvalidTokenizerError(f"the token {content[:40]!r} has two ids, {ids[content]} and {token_id}")
        known = entries.pieces.get(token_id) or entries.texts.get(token_id) or entries.specials.get(token_id)
        if known not in (None, "", content):
            raise InvalidTokenizerError(f"the id {token_id} has two tokens, {known[:40]!r} and {content[:40]!r}")
        kind = entries.specials if added.get("special") is True else entries.texts
        kind[token_id] = content


def _put_unknown(entries: _Entries, model: Json) -> None:
    """The token that stands for what the vocabulary lacks has no bytes, even where it is not declared as special."""
    unknown, unknown_id = model.get("unk_token"), model.get("unk_id")
    if isinstance(unknown, str):
        unknown_id = next((token_id for token_id, piece in entries.pieces.items() if piece == unknown), None)
    if isinstance(unknown_id, int) and unknown_id in entries.pieces:
        entries.texts.pop(unknown_id, None)
        entries.specials[unknown_id] = entries.pieces[unknown_id]
        entries.unknown_id = unknown_id


def _size(entries: _Entries, vocabulary_size: int) -> int:
    text_ids = entries.pieces.keys() | entries.texts.keys()
    all_ids = text_ids | entries.specials.keys()
    if not all_ids:
        raise InvalidTokenizerError("its vocabulary is empty")
    bound = max(_SPARSEST * len(all_ids), _ALWAYS_ALLOWED)
    if max(all_ids) >= bound or vocabulary_size > bound:
        worst = max(max(all_ids) + 1, vocabulary_size)
        raise InvalidTokenizerError(f"claims {worst} ids for {len(all_ids)} tokens")
    if not vocabulary_size:
        return max(all_ids) + 1
    # A special token beyond the model's logits (an image's, in a text-only copy of a model) is one that it never says.
    largest = max(text_ids - entries.specials.keys(), default=0)
    if largest >= vocabulary_size:
        raise _beyond_size(largest, vocabulary_size)
    return vocabulary_size


def _build(entries: _Entries, family: _Family, size: int) -> TokenTable:
    tokens_V = [b""] * size
    for token_id, piece in entries.pieces.items():
        if token_id < size:
            tokens_V[token_id] = family.bytes_of_piece(piece)
    for token_id, text in entries.texts.items():
        tokens_V[token_id] = family.bytes_of_added(text)
    specials = {token_id: text for token_id, text in sorted(entries.specials.items()) if token_id < size}
    for token_id, text in specials.items():
        text.encode()  # refused here rather than where it is shown
        tokens_V[token_id] = b""
    lengths_V = np.fromiter(map(len, tokens_V), np.int64, size)
    # A token of no bytes that has no role stands for nothing, like padding.
    kinds_V = np.where(lengths_V > 0, TokenKind.TEXT, TokenKind.ABSENT).astype(np.uint8)
    kinds_V[list(specials)] = TokenKind.SPECIAL
    writes_all = family.writes_bytes and {token[0] for token in tokens_V if len(token) == 1} >= _BYTES_OF_TEXT
    is_unknown = entries.unknown_id in specials and not writes_all
    return TokenTable(
        kinds_V=kinds_V,
        blob=b"".join(tokens_V),
        offsets_V1=np.append(0, np.cumsum(lengths_V)),
        special_texts=specials,
        unknown_id=entries.unknown_id if is_unknown else None,
    )


def _beyond_size(largest: int, size: int) -> InvalidTokenizerError:
    return InvalidTokenizerError(
        f"claims ids beyond its size: its largest is {largest}, and vocabulary_size is {size}; send the model's logits"
    )


def _unsupported(why: str) -> InvalidTokenizerError:
    return InvalidTokenizerError(f"cannot be used: {why}", reason="UNSUPPORTED_TOKENIZER")
