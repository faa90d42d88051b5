from __future__ import annotations

import numpy as np
import pytest
from preceptor_server.edges.http.texts import Texts, joined_text, shown

from tests.unit.server.alignment.alignments import table_of
from tests.unit.server.hosting import hosted_teacher

TABLE = table_of([b"a", b"", "é".encode()[:1], "é".encode()[1:], b" <b>", b""], specials={5: "<|end|>"})


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"plain", "plain"),
        ("é😀".encode(), "é😀"),
        ("é".encode()[:1], "<0xC3>"),
        (b"a" + "😀".encode()[:2], "a<0xF0><0x9F>"),
        (b"\xff\xfe", "<0xFF><0xFE>"),
        (b"<script>alert(1)</script>", "<script>alert(1)</script>"),
        (b"\x00\n", "\x00\n"),
    ],
)
def test_bytes_are_text_where_they_are_and_are_spelled_where_they_are_not(data: bytes, text: str) -> None:
    assert shown(data) == text


def test_texts_of_all_ids_that_occur_once_each() -> None:
    texts = Texts(TABLE).of(np.array([5, 0, 0]), np.array([[1, 2], [4, 99]]))
    assert texts == {"0": "a", "1": "", "2": "<0xC3>", "4": " <b>", "5": "<|end|>", "99": ""}


def test_characters_that_tokens_share_are_whole_when_they_are_joined() -> None:
    assert joined_text(TABLE, [5, 0, 2, 3]) == "<|end|>aé"


def test_a_vocabulary_that_is_not_known_has_no_texts() -> None:
    assert Texts(None, hosted_teacher().tokenizer).of(np.array([1])) == {}
