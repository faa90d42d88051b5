"""A text that is encoded in pieces has the ids that it has as a whole."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from preceptor_server.alignment.text_pieces import can_be_cut, pieces_of
from tokenizers import AddedToken, Tokenizer

from tests.unit.server.alignment import tokenizers_for_tests as made
from tests.unit.server.alignment.long_texts import TEXTS, tokenizers

TOKENIZERS = {name: Tokenizer.from_str(text) for name, text in tokenizers().items()}
CAN_BE_CUT = {
    name: can_be_cut(tokenizer, vocabulary=tokenizer.get_vocab(with_added_tokens=False))
    for name, tokenizer in TOKENIZERS.items()
}


def test_which_tokenizers_can_be_cut() -> None:
    whole = {name for name, can in CAN_BE_CUT.items() if not can}
    assert whole == {
        "unknown pattern", "prefix space", "llama 2", "unigram", "metaspace",
        "metaspace, unk each", "metaspace, drops", "tokens across",
    }  # fmt: skip


@pytest.mark.parametrize("name", [name for name, can in CAN_BE_CUT.items() if can])
@settings(max_examples=60, deadline=None)
@given(text=TEXTS)
def test_pieces_have_the_ids_of_the_whole(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    pieces = list(pieces_of(text, num_characters=1))
    assert "".join(pieces) == text
    encodings = tokenizer.encode_batch_fast(pieces, add_special_tokens=False)
    ids = list(itertools.chain.from_iterable(encoding.ids for encoding in encodings))
    assert ids == tokenizer.encode(text, add_special_tokens=False).ids


def test_pieces_are_as_long_as_asked_for_where_there_are_places() -> None:
    assert list(pieces_of("ab cd ef gh", num_characters=4)) == ["ab cd", " ef gh"]
    assert list(pieces_of("one two\nthree", num_characters=1)) == ["one", " two", "\nthree"]
    assert list(pieces_of("9 9 9 9", num_characters=1)) == ["9 9 9 9"]
    assert list(pieces_of("", num_characters=1)) == []


@pytest.mark.parametrize(
    "token",
    [
        AddedToken("one two"),
        AddedToken("<end", rstrip=True),
        AddedToken(" x", single_word=True),
    ],
)
def test_an_added_token_that_reaches_across_a_cut_forbids_it(token: AddedToken) -> None:
    tokenizer = Tokenizer.from_str(made.byte_level())
    assert can_be_cut(tokenizer, vocabulary=tokenizer.get_vocab())
    tokenizer.add_tokens([token])
    assert not can_be_cut(tokenizer, vocabulary=tokenizer.get_vocab())


def test_without_a_pattern_a_token_across_a_cut_forbids_it() -> None:
    tokenizer = TOKENIZERS["gemma"]
    vocabulary = tokenizer.get_vocab()
    assert can_be_cut(tokenizer, vocabulary=vocabulary)
    assert not can_be_cut(tokenizer, vocabulary={**vocabulary, "s\u2581": 9999})
