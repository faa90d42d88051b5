"""What ends a response, from all the places that say so. Imports no tokenizer library: it is given a tokenizer.

All who need it use this, so that they mean the same ends: a base model's settings may name `<|endoftext|>` where its
template ends every turn with `<|im_end|>`.
"""

from __future__ import annotations

from typing import Any

_WORDS = "preceptor"


def joined_ids(*named: int | list[int] | None) -> tuple[int, ...]:
    """All ids once, in the order in which they are named: each place names one, several, or none."""
    ids: list[int] = []
    for one in named:
        ids += [] if one is None else one if isinstance(one, list) else [one]
    return tuple(dict.fromkeys(map(int, ids)))


def turn_end_id(tokenizer: Any) -> int | None:  # Any: a tokenizer of transformers, which the base install lacks
    """The special token right behind an assistant's words; None where the template writes none there, or is none."""
    _, found, rest = (short_conversation(tokenizer) or "").rpartition(_WORDS)
    ids = tokenizer(rest, add_special_tokens=False)["input_ids"] if found else []
    is_special = bool(ids) and ids[0] in tokenizer.added_tokens_decoder
    return int(ids[0]) if is_special and tokenizer.added_tokens_decoder[ids[0]].special else None


def short_conversation(tokenizer: Any) -> str | None:  # Any: as above
    """A question and its answer as the template writes them; None where it refuses them, or where there is none."""
    if not tokenizer.chat_template:
        return None
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": _WORDS}]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False))
    except Exception:  # noqa: BLE001  a template is a program, and may refuse these messages with any error
        return None
