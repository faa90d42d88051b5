"""A student's tokenizer beside its model: which template is meant, which ids end and pad, which tokens have no row.

Works on a tokenizer of transformers that it is given; imports neither it nor torch, so that the doctor can ask too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from preceptor.turns import short_conversation

from preceptor_client.train.errors import InvalidStudentError

_MAX_SHOWN = 3
_ANY_TEXT = "Hello"


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """Ids that the student is run with; each has a row in its model."""

    end_token_ids: tuple[int, ...]
    """The first is the one to learn."""
    pad_token_id: int
    notes: tuple[str, ...]
    """What the user should know: tokens that were left out for want of a row."""


def chosen_template(tokenizer: Any, *, name: str) -> tuple[str | None, tuple[str, ...]]:  # Any: as below
    """The chat template to use, and what the user should know. Of several named ones that of this name, else "default",
    as transformers has it. Raises InvalidStudentError where the name is missing or wrong."""
    templates: str | dict[str, str] | None = tokenizer.chat_template
    if not isinstance(templates, dict):
        if name:
            has = "one, without a name" if templates else "none"
            raise InvalidStudentError(
                f"student.chat_template={name!r} names a chat template, and the student's tokenizer has {has}: leave "
                "the setting out"
            )
        return templates, ()
    names = ", ".join(sorted(templates))
    if name and name not in templates:
        raise InvalidStudentError(
            f"student.chat_template={name!r} is none of the chat templates of the student's tokenizer: {names}"
        )
    if name:
        return templates[name], ()
    if "default" not in templates:
        raise InvalidStudentError(
            f"the student's tokenizer has several chat templates, and none is named default: set student.chat_template "
            f"to one of them: {names}"
        )
    note = f"the student's tokenizer has several chat templates ({names}): 'default' is used"
    return templates["default"], (f"{note}; student.chat_template names another",)


def fit_vocabulary(
    tokenizer: Any,  # Any: a tokenizer of transformers, which is not imported here
    *,
    num_rows: int,
    named_end_ids: Sequence[int],
) -> Vocabulary:
    """`num_rows` is that of the model's embedding, `named_end_ids` all ids that end a response, the one to learn first.
    The tokenizer has the template that was chosen. Raises InvalidStudentError where tokens of ordinary texts, of the
    template, or all end tokens have no row."""
    beyond = {token_id: text for text, token_id in tokenizer.get_vocab().items() if token_id >= num_rows}
    _check_ordinary(tokenizer, beyond, num_rows=num_rows)
    notes = []
    ends = tuple(token_id for token_id in named_end_ids if 0 <= token_id < num_rows)
    if not ends:
        without = f" ({', '.join(map(str, named_end_ids))} has no row in the model)" if named_end_ids else ""
        raise InvalidStudentError(
            f"the student has no end token{without}: name one in its generation_config.json (eos_token_id), or set "
            "student.end_token_ids"
        )
    if left_out := [token_id for token_id in named_end_ids if token_id not in ends]:
        notes.append(f"end tokens without a row in the student's model are never written: {_shown(left_out, beyond)}")
    pad = tokenizer.pad_token_id
    if pad is not None and pad >= num_rows:
        notes.append(
            f"the student's padding token {_shown([pad], beyond)} has no row in its model ({num_rows} rows): "
            f"{tokenizer.convert_ids_to_tokens(ends[0])!r} pads instead, which changes nothing"
        )
    if others := sorted(beyond.keys() - {pad, *named_end_ids}):
        notes.append(
            f"special tokens without a row in the student's model: {_shown(others, beyond)}: a prompt that holds the "
            "text of one is refused"
        )
    return Vocabulary(
        end_token_ids=ends,
        pad_token_id=ends[0] if pad is None or pad >= num_rows else int(pad),
        notes=tuple(notes),
    )


def _check_ordinary(tokenizer: Any, beyond: dict[int, str], *, num_rows: int) -> None:  # Any: as above
    """A text makes special tokens only where it holds their text, or where tokenizer or template add them."""
    added = tokenizer.added_tokens_decoder
    used = {*tokenizer(_ANY_TEXT)["input_ids"]}
    used |= {*tokenizer(short_conversation(tokenizer) or "", add_special_tokens=False)["input_ids"]}
    if ordinary := sorted(
        token_id for token_id in beyond if token_id in used or token_id not in added or not added[token_id].special
    ):
        raise InvalidStudentError(
            f"student.model: its tokenizer has tokens that the model has no row for ({num_rows} rows): "
            f"{_shown(ordinary, beyond)}: save the model after model.resize_token_embeddings(len(tokenizer)), or take "
            "the tokenizer that belongs to it"
        )


def _shown(ids: Sequence[int], texts: dict[int, str]) -> str:
    shown = ", ".join(
        f"{texts[token_id]!r} ({token_id})" if token_id in texts else str(token_id) for token_id in ids[:_MAX_SHOWN]
    )
    return shown + (f", and {len(ids) - _MAX_SHOWN} more" if len(ids) > _MAX_SHOWN else "")


def begins_twice(tokenizer: Any, ids: Sequence[int]) -> bool:  # Any: as above
    """Whether a prompt begins with two tokens of beginning: its text had one, and the tokenizer added another."""
    return len(ids) > 1 and tokenizer.bos_token_id is not None and ids[0] == ids[1] == tokenizer.bos_token_id
