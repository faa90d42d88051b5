from __future__ import annotations

from collections.abc import Sequence

import pytest
from preceptor_client.train.record.token_texts import token_text, token_texts

from tests.tiny import tiny_tokenizer

EURO = tuple("€".encode())


def _bytes(ids: Sequence[int]) -> str:
    """One byte per token, as byte-level tokenizers decode."""
    return bytes(ids).decode("utf-8", errors="replace")


def _words(ids: Sequence[int]) -> str:
    """As SentencePiece decodes: the space in front of the first token is dropped, and token 0 has no text."""
    return "".join(["", " The", " end", "."][token] for token in ids).removeprefix(" ")


def test_pieces_of_a_character_show_it_and_their_place() -> None:
    assert token_texts((), (*b"a", *EURO, *b"b"), decode=_bytes) == ["a", "€ 1/3", "€ 2/3", "€ 3/3", "b"]


def test_characters_side_by_side_are_told_apart() -> None:
    assert token_texts((65,), EURO * 2, decode=_bytes) == ["€ 1/3", "€ 2/3", "€ 3/3"] * 2


def test_pieces_that_share_a_token_are_one_text() -> None:
    pieces = [bytes(EURO[:2]), bytes(EURO[2:] + EURO[:1]), bytes(EURO[1:])]

    def decode(ids: Sequence[int]) -> str:
        return b"".join(pieces[token] for token in ids).decode("utf-8", errors="replace")

    assert token_texts((), (0, 1, 2), decode=decode) == ["€€ 1/3", "€€ 2/3", "€€ 3/3"]


@pytest.mark.parametrize("ids", [EURO[:2], (0x80,), (0x80,) * 20])
def test_bytes_that_never_become_a_character_show_their_ids(ids: tuple[int, ...]) -> None:
    assert token_texts((), ids, decode=_bytes) == [f"\ufffd<{token}>" for token in ids]


def test_half_a_character_before_a_letter_does_not_take_it_along() -> None:
    assert token_texts((), (EURO[0], *b"ab"), decode=_bytes) == [f"\ufffd<{EURO[0]}>", "a", "b"]


def test_the_space_in_front_of_a_token_is_shown() -> None:
    assert token_texts((1,), (2, 3, 1), decode=_words) == [" end", ".", " The"]
    # Nothing is before it: this is how the tokenizer itself writes it.
    assert token_texts((), (1, 2), decode=_words) == ["The", " end"]


def test_a_token_without_a_text_shows_its_id() -> None:
    assert token_texts((1,), (0, 2), decode=_words) == ["<0>", "end"]
    assert token_texts((1,), (), decode=_words) == []


def test_a_candidate_is_read_behind_what_was_written() -> None:
    assert token_text(2, before=(1,), decode=_words) == " end"
    assert token_text(2, before=(), decode=_words) == "end"
    assert token_text(EURO[0], before=(65,), decode=_bytes) == f"\ufffd<{EURO[0]}>"


def test_a_tokenizer_of_bytes_shows_every_byte() -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode("a 語 b", add_special_tokens=False)
    assert len(ids) == 7
    texts = token_texts((), ids, decode=lambda some: str(tokenizer.decode(list(some))))
    assert texts == ["a", " ", "語 1/3", "語 2/3", "語 3/3", " ", "b"]
