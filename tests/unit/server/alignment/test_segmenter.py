from __future__ import annotations

import json
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from preceptor_server.alignment.segmenter import Segmentation, Segmenter
from preceptor_server.alignment.token_table import read_token_table
from tokenizers import Tokenizer

from tests.unit.server.alignment.tokenizers_for_tests import (
    FAMILIES,
    WITHOUT_BYTES,
    WRITES_ALL,
    byte_level,
    gemma_like,
    llama2_like,
    unigram,
    with_extra_specials,
    with_parts,
)

MIXED = "  the mother's caf\u00e9\n\n\t\u4f60\u597d \U0001f600  12 = 3; e\u0301 <|end|> </s>".encode()
RANDOM = settings(database=None, deadline=None, max_examples=60)

texts = st.lists(
    st.one_of(st.text(max_size=12), st.sampled_from(["the ", " mother", "  ", "\u2581", "<|end|>", "</s>", "<0x41>"])),
    max_size=6,
).map("".join)
some_bytes = st.lists(st.one_of(st.binary(max_size=6), texts.map(str.encode)), max_size=6).map(b"".join)


@cache
def segmenter(family: str) -> Segmenter:
    return segmenter_of((FAMILIES | WITHOUT_BYTES)[family]())


def segmenter_of(tokenizer_json: str) -> Segmenter:
    return Segmenter(tokenizer_json, read_token_table(tokenizer_json))


def tokens_of(owner: Segmenter, segmentation: Segmentation) -> list[bytes]:
    """The bytes of those that stand for the bytes which they cover."""
    return [owner.table.bytes_of(int(token_id)) for token_id in segmentation.known().ids_M]


def cut(owner: Segmenter, text: bytes) -> list[bytes]:
    (segmentation,) = owner.segment([text])
    return tokens_of(owner, segmentation)


def check(owner: Segmenter, segmentation: Segmentation, text: bytes) -> None:
    """Every known token's bytes are the text's at its place; places ascend, and those of known tokens are disjoint."""
    assert (np.diff(segmentation.starts_M) >= 0).all()
    assert (np.diff(segmentation.ends_M) >= 0).all()
    end_before, known = 0, segmentation.known()
    columns = (known.ids_M, known.starts_M, known.ends_M)
    for token_id, start, end in zip(*(column.tolist() for column in columns), strict=True):
        assert end_before <= start < end <= len(text)
        assert text[start:end] == owner.table.bytes_of(token_id)
        end_before = end


@pytest.mark.parametrize("family", [*FAMILIES, *WITHOUT_BYTES])
@given(batch=st.lists(some_bytes, max_size=4))
@RANDOM
def test_any_bytes_are_cut_into_tokens_of_these_bytes(family: str, batch: list[bytes]) -> None:
    owner = segmenter(family)
    segmentations = owner.segment(batch)
    assert len(segmentations) == len(batch)
    for segmentation, text in zip(segmentations, batch, strict=True):
        check(owner, segmentation, text)


@pytest.mark.parametrize("family", WRITES_ALL)
@given(text=some_bytes.filter(lambda text: "\u2581".encode() not in text))
@RANDOM
def test_a_tokenizer_that_writes_every_byte_leaves_no_gap(family: str, text: bytes) -> None:
    assert b"".join(cut(segmenter(family), text)) == text


@pytest.mark.parametrize("family", [*FAMILIES, *WITHOUT_BYTES])
def test_a_batch_is_cut_as_its_texts_are_one_by_one(family: str) -> None:
    batch = [MIXED, b"", b"the \xff\xfe mother", b"the", "\u2581 \u2581the".encode()]
    owner = segmenter(family)
    for one, text in zip(owner.segment(batch), batch, strict=True):
        (alone,) = owner.segment([text])
        assert one.ids_M.tolist() == alone.ids_M.tolist()
        assert one.starts_M.tolist() == alone.starts_M.tolist()
        assert one.ends_M.tolist() == alone.ends_M.tolist()


def test_plain_text_is_cut_as_the_library_cuts_it() -> None:
    text = "the mother sleeps, and 345 brothers jump\n\n  over it"
    for tokenizer_json in (byte_level(), gemma_like()):
        (segmentation,) = segmenter_of(tokenizer_json).segment([text.encode()])
        expected = Tokenizer.from_str(tokenizer_json).encode(text, add_special_tokens=False).ids
        assert segmentation.ids_M.tolist() == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_put_in_front_of_a_text(family: str) -> None:
    assert cut(segmenter(family), b"the dog")[0].startswith(b"t")


def test_a_leading_space_is_the_texts_own() -> None:
    assert cut(segmenter_of(llama2_like()), b" the") == [b" the"]
    assert cut(segmenter_of(llama2_like()), b"the") == [b"the"]


def test_special_tokens_in_a_text_are_text() -> None:
    owner = segmenter_of(with_extra_specials())
    tokens = cut(owner, b"the<|extra|><think>")
    assert b"".join(tokens) == b"the<|extra|><think>"
    assert tokens[-1] == b"<think>"
    assert len(tokens) > 5, "<|extra|> is written in pieces"


@pytest.mark.parametrize("normalizer", ["NFC", "NFKC", "Lowercase", "StripAccents", "Nmt"])
def test_no_normaliser_changes_the_bytes(normalizer: str) -> None:
    owner = segmenter_of(with_parts(byte_level(), normalizer={"type": normalizer}))
    text = "  E\u0301cole \ufb01n \u212b\u200b ".encode()
    assert b"".join(cut(owner, text)) == text
    assert owner.lossy_steps == (normalizer,)


def test_truncation_padding_and_dropout_are_off() -> None:
    parts = json.loads(byte_level())
    parts["model"]["dropout"] = 0.9
    parts["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    parts["padding"] = {
        "strategy": {"Fixed": 64},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<|end|>",
    }
    text = b"the mother sleeps over there"
    assert cut(segmenter_of(json.dumps(parts)), text) == cut(segmenter_of(byte_level()), text)


def test_what_the_tokenizer_cannot_write_is_a_gap_between_tokens_in_their_places() -> None:
    text = "the \u6f22 dog\U0001f680 the".encode()
    owner = segmenter_of(unigram())
    (segmentation,) = owner.segment([text])
    check(owner, segmentation, text)
    covered = set()
    known = segmentation.known()
    for start, end in zip(known.starts_M.tolist(), known.ends_M.tolist(), strict=True):
        covered |= set(range(start, end))
    assert bytes(byte for place, byte in enumerate(text) if place not in covered) == "\u6f22\U0001f680".encode()


def test_a_model_that_drops_what_it_lacks_keeps_the_places_of_the_rest() -> None:
    parts = {
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    }
    (segmentation,) = segmenter_of(json.dumps(parts)).segment([b"bxab\xc3\xa9yb"])
    assert segmentation.ids_M.tolist() == [1, 2, 1]
    assert segmentation.starts_M.tolist() == [0, 2, 7]


def test_the_character_that_stands_for_a_space_is_a_gap() -> None:
    owner = segmenter_of(gemma_like())
    (segmentation,) = owner.segment(["the\u2581 the".encode()])
    assert segmentation.is_known_M.tolist() == [True, False, True]
    assert b"".join(tokens_of(owner, segmentation)) == b"the the"


def test_bytes_that_are_no_text_become_byte_tokens_between_the_text() -> None:
    for tokenizer_json in (byte_level(), gemma_like()):
        tokens = cut(segmenter_of(tokenizer_json), b"the\xff\xfe the\xe4")
        assert tokens == [b"the", b"\xff", b"\xfe", b" the", b"\xe4"]


def test_a_piece_of_a_character_is_the_token_that_the_vocabulary_has_for_it() -> None:
    parts = json.loads(byte_level())
    vocabulary, merges = parts["model"]["vocab"], parts["model"]["merges"]
    vocabulary["\u00e6\u00bc"] = len(vocabulary)
    merges.append(["\u00e6", "\u00bc"])  # the letters of the bytes E6 BC
    assert cut(segmenter_of(json.dumps(parts)), b"the\xe6\xbc") == [b"the", b"\xe6\xbc"]


ARABIC, WORD = "\u0645\u0631", "the"
UNKNOWN = {
    # Each character by itself, or all of them as one.
    "metaspace_bpe": ["<unk>"],
    "metaspace_bpe_unfused": ["<unk>", "<unk>"],
    "metaspace_bpe_dropping": [],
    "plain_unigram": ["<unk>"],
    "unigram": ["<unk>"],
}


@pytest.mark.parametrize("family", UNKNOWN)
def test_what_is_written_for_unknown_text_is_kept_and_marked(family: str) -> None:
    owner = segmenter(family)
    text = (WORD + ARABIC + WORD).encode()
    (segmentation,) = owner.segment([text])
    check(owner, segmentation, text)
    marked = segmentation.ids_M[~segmentation.is_known_M].tolist()
    assert [owner.table.special_texts[token_id] for token_id in marked] == UNKNOWN[family]
    assert set(marked) <= {owner.table.unknown_id}
    assert b"".join(tokens_of(owner, segmentation)) == b"thethe"


def test_a_character_without_byte_tokens_stands_before_one_that_has_them() -> None:
    """The library writes it behind: the teacher reads both in their order."""
    owner = segmenter("with_some_bytes")
    (segmentation,) = owner.segment(["\u0928\u0645".encode()])
    assert segmentation.is_known_M.tolist() == [False, True, True]
    assert tokens_of(owner, segmentation) == [b"\xd9", b"\x85"]


def test_text_that_names_a_special_token_is_not_that_token() -> None:
    """Unigram finds it among its pieces."""
    owner = segmenter("plain_unigram")
    (segmentation,) = owner.segment([b"the</s>the"])
    texts = [owner.table.special_texts.get(int(token_id)) for token_id in segmentation.ids_M]
    assert "</s>" not in texts
    assert "<unk>" in texts


@pytest.mark.parametrize(
    ("flag", "text", "known", "is_known"),
    [
        ("lstrip", b"the  <think> dog", b"the dog", [True, False, True]),
        ("rstrip", b"the <think>   dog", b"the <think>dog", [True] * 5),
    ],
)
def test_an_added_token_that_takes_white_space_with_it_is_read_and_never_stands_for_the_space(
    flag: str, text: bytes, known: bytes, is_known: list[bool]
) -> None:
    parts = json.loads(with_extra_specials())
    (think,) = (token for token in parts["added_tokens"] if token["content"] == "<think>")
    think[flag] = True
    owner = segmenter_of(json.dumps(parts))
    (segmentation,) = owner.segment([text])
    check(owner, segmentation, text)
    assert think["id"] in segmentation.ids_M
    assert segmentation.is_known_M.tolist() == is_known
    assert b"".join(tokens_of(owner, segmentation)) == known


def test_an_added_token_that_is_a_word_of_its_own_is_text_inside_of_one() -> None:
    parts = json.loads(with_extra_specials())
    (think,) = (token for token in parts["added_tokens"] if token["content"] == "<think>")
    think |= {"single_word": True, "content": "zz"}
    owner = segmenter_of(json.dumps(parts))
    inside, alone = owner.segment([b"dizzy", b"the zz"])
    assert think["id"] not in inside.ids_M
    assert b"".join(tokens_of(owner, inside)) == b"dizzy"
    assert think["id"] in alone.ids_M
