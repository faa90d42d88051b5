from __future__ import annotations

import json

import numpy as np
import pytest
from preceptor_server.alignment.pairing import read_teacher
from preceptor_server.alignment.segmenter import Segmenter
from preceptor_server.alignment.table_check import verify_table
from preceptor_server.alignment.token_table import padded, read_token_table
from preceptor_server.alignment.types import TokenKind, TokenTable
from preceptor_server.errors import InvalidTokenizerError
from tokenizers import Tokenizer

from tests.unit.server.alignment.tokenizers_for_tests import (
    FAMILIES,
    Parts,
    added,
    byte_level,
    gemma_like,
    unigram,
    with_extra_specials,
    with_parts,
)

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
GOOD: Parts = {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}, "decoder": BYTE_LEVEL}


def changed(**model: object) -> str:
    return json.dumps(GOOD | {"model": GOOD["model"] | model})


def with_added(*tokens: Parts) -> str:
    return json.dumps(GOOD | {"added_tokens": list(tokens)})


def id_of(tokenizer_json: str, token: str) -> int:
    token_id = Tokenizer.from_str(tokenizer_json).token_to_id(token)
    assert token_id is not None
    return token_id


@pytest.mark.parametrize("family", FAMILIES)
def test_the_bytes_of_text_are_what_the_librarys_decoder_writes(family: str) -> None:
    tokenizer_json = FAMILIES[family]()
    tokenizer, table = Tokenizer.from_str(tokenizer_json), read_token_table(tokenizer_json)
    start = tokenizer.encode("x", add_special_tokens=False).ids
    for token_id in np.flatnonzero(table.kinds_V == TokenKind.TEXT).tolist():
        token = table.bytes_of(token_id)
        if b"\xef\xbf\xbd" in (decoded := tokenizer.decode([*start, token_id]).encode()):
            continue  # a piece of a character, which the decoder cannot write alone
        # Behind another token, so that no decoder takes a leading space away.
        assert decoded == tokenizer.decode(start).encode() + token


def test_every_byte_has_its_token_in_a_byte_level_vocabulary() -> None:
    table = read_token_table(byte_level())
    tokens = [table.bytes_of(token_id) for token_id in range(table.size)]
    assert {bytes([byte]) for byte in range(256)} <= set(tokens)


def test_byte_tokens_of_sentencepiece_are_single_bytes() -> None:
    table = read_token_table(gemma_like())
    bytes_of_tokens = [table.bytes_of(id_of(gemma_like(), f"<0x{byte:02X}>")) for byte in range(256)]
    assert bytes_of_tokens == [bytes([byte]) for byte in range(256)]


def test_special_tokens_have_a_text_and_no_bytes() -> None:
    table = read_token_table(with_extra_specials())
    end, extra = id_of(with_extra_specials(), "<|end|>"), id_of(with_extra_specials(), "<|extra|>")
    assert dict(table.special_texts) == {end: "<|end|>", extra: "<|extra|>"}
    assert table.kinds_V[[end, extra]].tolist() == [TokenKind.SPECIAL, TokenKind.SPECIAL]
    assert table.bytes_of(extra) == b""


def test_added_tokens_that_are_not_special_are_text() -> None:
    table = read_token_table(with_extra_specials())
    assert table.bytes_of(id_of(with_extra_specials(), "<think>")) == b"<think>"


def test_an_added_token_of_sentencepiece_writes_a_space_as_its_pieces_do() -> None:
    tokenizer_json = with_parts(gemma_like(), added_tokens=[added(441, "\u2581\u2581\n", special=False)])
    assert read_token_table(tokenizer_json).bytes_of(441) == b"  \n"


def test_the_token_for_the_unknown_is_special_even_where_it_is_not_declared() -> None:
    table = read_token_table(with_parts(unigram(), added_tokens=[]))
    assert dict(table.special_texts) == {0: "<unk>"}


def test_padding_and_holes_are_absent() -> None:
    tokenizer_json = with_added(added(5, "<s>", special=True))
    table = read_token_table(tokenizer_json, vocabulary_size=8)
    text, special, absent = TokenKind.TEXT, TokenKind.SPECIAL, TokenKind.ABSENT
    assert table.kinds_V.tolist() == [text, text, text, absent, absent, special, absent, absent]
    assert [table.bytes_of(token_id) for token_id in range(8)] == [b"a", b"b", b"ab", b"", b"", b"", b"", b""]


def test_padding_a_table_is_as_reading_it_padded() -> None:
    assert_same(padded(read_token_table(byte_level()), size=512), read_token_table(byte_level(), vocabulary_size=512))


def test_a_special_token_beyond_the_models_logits_is_left_out() -> None:
    table = read_token_table(with_added(added(3, "<image>", special=True)), vocabulary_size=3)
    assert_same(table, read_token_table(json.dumps(GOOD)))


def test_a_text_token_beyond_the_models_logits_is_refused() -> None:
    with pytest.raises(InvalidTokenizerError, match="claims ids beyond its size: its largest is 2"):
        read_token_table(json.dumps(GOOD), vocabulary_size=2)


HOSTILE = {
    "not JSON": ("hello", "not JSON"),
    "empty": ("", "not JSON"),
    "a list": ("[]", "holds a list"),
    "no model": ("{}", "no 'model'"),
    "null model": ('{"model": null}', "no 'model'"),
    "model is a list": ('{"model": []}', "'model' is a list"),
    "deep nesting": ('{"model":' + "[" * 200_000, "nested too deeply|not JSON"),
    "no vocabulary": (changed(vocab=None), "no vocabulary"),
    "empty vocabulary": (changed(vocab={}), "empty"),
    "list of ints": (changed(vocab=[1, 2]), "not of pieces"),
    "list of empty lists": (changed(vocab=[[]]), "not of pieces"),
    "one piece twice": (changed(vocab=[["a", 0.0], ["a", 0.0]]), "several ids to one token"),
    "ids as strings": (changed(vocab={"a": "0"}), "not a number"),
    "boolean ids": (changed(vocab={"a": True}), "not a number"),
    "fractional ids": (changed(vocab={"a": 0.0}), "not a number"),
    "negative id": (changed(vocab={"a": -1}), "not a number"),
    "one id twice": (changed(vocab={"a": 0, "b": 0}), "one id to several tokens"),
    "huge id": (changed(vocab={"a": 0, "b": 2**31}), "claims 2147483649 ids for 2 tokens"),
    "huger id": (changed(vocab={"a": 2**40}), "claims"),
    "endless number": ('{"model": {"vocab": {"a": ' + "9" * 5000 + "}}}", "not JSON"),
    "half a surrogate": (changed(vocab={"\ud800": 0}), "surrogate"),
    "added tokens are a number": (json.dumps(GOOD | {"added_tokens": 3}), "not a list of objects"),
    "added tokens are strings": (json.dumps(GOOD | {"added_tokens": ["a"]}), "not a list of objects"),
    "added token without text": (with_added({"id": 7}), "no text where 'content'"),
    "added token without id": (with_added({"content": "x"}), "not a number"),
    "added token at a taken id": (with_added(added(1, "x", special=True)), "the id 1 has two tokens, 'b' and 'x'"),
    "two added tokens at one id": (
        with_added(added(9, "x", special=True), added(9, "y", special=False)),
        "the id 9 has two tokens",
    ),
    "known token at another id": (with_added(added(9, "a", special=True)), "'a' has two ids, 0 and 9"),
    "decoder is a number": (json.dumps(GOOD | {"decoder": 1}), "'decoder' is a int"),
    "decoder without type": (json.dumps(GOOD | {"decoder": {}}), "no text where 'type'"),
    "decoders is a number": (json.dumps(GOOD | {"decoder": {"type": "Sequence", "decoders": 1}}), "list of objects"),
    "decoders of numbers": (json.dumps(GOOD | {"decoder": {"type": "Sequence", "decoders": [1]}}), "list of objects"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_is_no_tokenizer_is_refused_in_words(name: str) -> None:
    tokenizer_json, words = HOSTILE[name]
    with pytest.raises(InvalidTokenizerError, match=words) as refusal:
        read_token_table(tokenizer_json)
    assert refusal.value.reason == "INVALID_TOKENIZER"


def test_a_size_that_would_take_all_memory_is_refused() -> None:
    with pytest.raises(InvalidTokenizerError, match="claims 4294967295 ids for 3 tokens"):
        read_token_table(json.dumps(GOOD), vocabulary_size=2**32 - 1)


def test_a_huge_token_is_a_token() -> None:
    table = read_token_table(changed(vocab={"a": 0, "b" * 3_000_000: 1}, merges=[]))
    assert table.bytes_of(1) == b"b" * 3_000_000


UNSUPPORTED = {
    "no decoder": (json.dumps(GOOD | {"decoder": None}), "no decoder"),
    "WordPiece": (json.dumps(GOOD | {"decoder": {"type": "WordPiece"}}), "WordPiece"),
    "CTC": (json.dumps(GOOD | {"decoder": {"type": "CTC"}}), "CTC"),
    "suffix": (json.dumps(GOOD | {"decoder": {"type": "BPEDecoder", "suffix": "</w>"}}), "BPEDecoder"),
    "suffix of the model": (changed(end_of_word_suffix="</w>"), "end_of_word_suffix"),
    "prefix of the model": (changed(continuing_subword_prefix="##"), "continuing_subword_prefix"),
    "only Fuse": (json.dumps(GOOD | {"decoder": {"type": "Fuse"}}), "how a space is written"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_a_vocabulary_whose_bytes_cannot_be_known_is_refused_in_words(name: str) -> None:
    tokenizer_json, words = UNSUPPORTED[name]
    with pytest.raises(InvalidTokenizerError, match=words) as refusal:
        read_token_table(tokenizer_json)
    assert refusal.value.reason == "UNSUPPORTED_TOKENIZER"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_of_every_family_is_verified(family: str) -> None:
    tokenizer_json = FAMILIES[family]()
    verify_table(Segmenter(tokenizer_json, read_token_table(tokenizer_json)))


def test_a_table_of_other_bytes_than_the_tokenizers_is_refused_by_the_probe() -> None:
    table = read_token_table(byte_level())
    shifted = TokenTable(
        kinds_V=table.kinds_V,
        blob=table.blob.replace(b"the", b"eth"),
        offsets_V1=table.offsets_V1,
        special_texts=table.special_texts,
    )
    with pytest.raises(InvalidTokenizerError, match="in the English") as refusal:
        verify_table(Segmenter(byte_level(), shifted))
    assert refusal.value.reason == "UNSUPPORTED_TOKENIZER"


def test_a_tokenizer_that_drops_spaces_is_refused_by_the_probe() -> None:
    tokenizer_json = with_parts(
        byte_level(), pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, BYTE_LEVEL]}
    )
    with pytest.raises(InvalidTokenizerError, match="loses or changes ' ' in the English"):
        verify_table(Segmenter(tokenizer_json, read_token_table(tokenizer_json)))


def test_an_added_token_that_the_library_numbers_otherwise_is_refused() -> None:
    parts = json.loads(byte_level())
    parts["added_tokens"].append(added(390, "<|late|>", special=True))
    with pytest.raises(InvalidTokenizerError, match=r"'<\|late\|>' has the id 390 in the file"):
        read_teacher(json.dumps(parts), None, vocabulary_size=0)


def assert_same(one: TokenTable, other: TokenTable) -> None:
    assert one.kinds_V.tolist() == other.kinds_V.tolist()
    assert one.offsets_V1.tolist() == other.offsets_V1.tolist()
    assert (one.blob, dict(one.special_texts)) == (other.blob, dict(other.special_texts))
