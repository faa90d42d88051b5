"""A text is never said to have more tokens than it has, and a text far too long is found out without tokenizing it."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from preceptor_server.alignment.text_bound import SHRINKS_BY, TextBound, bound_of
from tokenizers import Tokenizer

from tests.unit.server.alignment.long_texts import TEXTS, tokenizers

TOKENIZERS = {name: Tokenizer.from_str(text) for name, text in tokenizers().items()}
NO_LIMIT = 10**12


def bound(name: str) -> TextBound:
    tokenizer = TOKENIZERS[name]
    return bound_of(tokenizer, vocabulary=tokenizer.get_vocab(with_added_tokens=False))


BOUNDS = {name: bound(name) for name in TOKENIZERS}


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(text=TEXTS)
def test_no_text_has_fewer_tokens_than_its_bound(name: str, text: str) -> None:
    least = BOUNDS[name].least_tokens(text, stop_above=NO_LIMIT)
    assert least <= len(TOKENIZERS[name].encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_no_text_of_one_repeated_character_has_fewer_tokens_than_its_bound(name: str) -> None:
    for character in "e =\n\u3000\u00e9\u4f60\U0001f600\x04":
        text = character * 5000
        least = BOUNDS[name].least_tokens(text, stop_above=NO_LIMIT)
        assert least <= len(TOKENIZERS[name].encode(text, add_special_tokens=False).ids), repr(character)


@pytest.mark.parametrize("name", sorted(set(TOKENIZERS) - {"unigram"}))
def test_of_a_long_text_of_letters_the_bound_says_something(name: str) -> None:
    assert BOUNDS[name].least_tokens("the other dog " * 10_000, stop_above=NO_LIMIT) > 1000


def test_a_tokenizer_that_loses_text_has_no_bound_and_says_which_step() -> None:
    assert BOUNDS["unigram"].why_none == "normalizer Lowercase"
    assert BOUNDS["unigram"].least_tokens("the other dog " * 10_000, stop_above=0) == 0


def test_counting_ends_when_it_is_certain() -> None:
    text, name = "the other dog " * 1_000_000, "lacking bytes"  # of which the length alone says nothing
    least = BOUNDS[name].least_tokens(text, stop_above=10)
    assert 10 < least < BOUNDS[name].least_tokens(text, stop_above=NO_LIMIT) / 10


def test_a_mark_on_the_next_slice_does_not_make_the_bound_too_large() -> None:
    """Each "e" is composed with the mark that follows it, which may lie in the slice behind it."""
    text = "e" * ((1 << 18) - 1) + "e\u0301" * 10
    least = BOUNDS["NFC"].least_tokens(text, stop_above=NO_LIMIT)
    assert least <= len(TOKENIZERS["NFC"].encode(text, add_special_tokens=False).ids)


def test_white_space_that_a_token_takes_along_weighs_nothing() -> None:
    text = " " * 100_000 + "<tag>" + "\u3000" * 1000
    assert len(TOKENIZERS["greedy token"].encode(text).ids) == 1
    assert BOUNDS["greedy token"].least_tokens(text, stop_above=NO_LIMIT) <= 1


def test_half_of_a_surrogate_pair_is_counted_and_not_refused_here() -> None:
    assert BOUNDS["byte-level"].least_tokens("\ud83d" * 1000, stop_above=NO_LIMIT) > 0


@pytest.mark.parametrize("form", SHRINKS_BY)
def test_no_character_shrinks_more_than_the_factor_of_its_normal_form(form: str) -> None:
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    apart = "NFKD" if "K" in form else "NFD"
    decomposing = max(num_bytes(c) / num_bytes(unicodedata.normalize(apart, c)) for c in characters)  # type: ignore[arg-type]  # a form
    composing = max(num_bytes(unicodedata.normalize("NFD", c)) / num_bytes(c) for c in characters)
    assert decomposing * (1 if form.endswith("D") else composing) <= SHRINKS_BY[form]


def num_bytes(text: str) -> int:
    return len(text.encode())
