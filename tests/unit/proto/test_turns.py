from __future__ import annotations

import pytest
from preceptor.turns import turn_end_id

from tests.tiny import tiny_tokenizer


@pytest.mark.parametrize(
    ("template", "end"),
    [
        ("{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>\n{% endfor %}", 2),
        ("{% for m in messages %}{{ m['content'] }}<|endoftext|>{% endfor %}", 0),
        ("{% for m in messages %}{{ m['content'] }}\n{% endfor %}", None),
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", None),
        ("{{ raise_exception('no assistants here') }}", None),
        ("{{ messages | undefined_filter }}", None),
        ("", None),
        (None, None),
    ],
)
def test_turn_ends_with_the_special_token_behind_the_assistants_words(template: str | None, end: int | None) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    assert turn_end_id(tokenizer) == end
