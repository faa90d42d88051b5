"""Token in, token out: what a conversation holds is what the student read and wrote, under three real templates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pytest
from preceptor_client.train.errors import InvalidEpisodeError
from preceptor_client.train.rollout.config import OnRewrittenHistory
from preceptor_client.train.rollout.conversation import Conversation, Template
from preceptor_client.train.rollout.engine import Written
from preceptor_client.train.student.view import StudentView
from preceptor_client.types import ChatMessage, ToolCall
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from tests.unit.client.train.rollout.chat_templates import CHATML, HEADERS, PLAIN, THINKING, chat_tokenizer, token_id

USER, TOOL = (ChatMessage(role=role, content=f"{role} asks") for role in ("user", "tool"))
ENDS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>")


def _ids(tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def _written(tokenizer: PreTrainedTokenizerFast, text: str | Sequence[int]) -> Written:
    ids = _ids(tokenizer, text) if isinstance(text, str) else tuple(text)
    reason: Literal["stop", "length"] = "stop" if ids[-1] in _ends(tokenizer) else "length"
    nothing_T = np.zeros(len(ids), np.float32)
    return Written(ids=ids, finish_reason=reason, student=StudentView(logprobs_T=nothing_T, entropies_T=nothing_T))


def _ends(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    return [token_id(tokenizer, token) for token in ENDS]


def _conversation(
    tokenizer: PreTrainedTokenizerFast,
    *,
    on_rewritten: OnRewrittenHistory = "rerender",
    num_ids: int = 1_000,
    **kwargs: bool,
) -> Conversation:
    return Conversation(
        [USER],
        template=Template(tokenizer=tokenizer, num_ids=num_ids, kwargs=kwargs),
        end_token_ids=_ends(tokenizer),
        on_rewritten_history=on_rewritten,
    )


def _texts(conversation: Conversation, tokenizer: PreTrainedTokenizerFast) -> list[list[str]]:
    """Of each part: its prompt and its segments."""
    return [
        [str(tokenizer.decode(list(ids))) for ids in (part.prompt_ids, *(one.ids for one in part.segments))]
        for part in conversation.parts
    ]


def test_template_goes_on_behind_the_end_token_that_the_student_wrote() -> None:
    tokenizer = chat_tokenizer(CHATML)
    conversation = _conversation(tokenizer)
    assert conversation.add_turn(_written(tokenizer, "hello<|im_end|>")) == "hello"
    conversation.add_messages([USER])
    assert _texts(conversation, tokenizer) == [
        [
            "<|im_start|>user\nuser asks<|im_end|>\n<|im_start|>assistant\n",
            "hello<|im_end|>",
            "\n<|im_start|>user\nuser asks<|im_end|>\n<|im_start|>assistant\n",
        ]
    ]
    assert [segment.is_policy for segment in conversation.parts[0].segments] == [True, False]


def test_turn_that_was_cut_is_ended_by_the_environments_tokens() -> None:
    tokenizer = chat_tokenizer(CHATML)
    conversation = _conversation(tokenizer)
    assert conversation.add_turn(_written(tokenizer, "hello the")) == "hello the"
    conversation.add_messages([USER])
    ((_, ours, theirs),) = _texts(conversation, tokenizer)
    assert (ours, theirs[:11]) == ("hello the", "<|im_end|>\n")


def test_ids_that_the_tokenizer_would_choose_otherwise_stay_as_they_were_written() -> None:
    """The letters of hello one by one; half a character; special tokens amid the text."""
    tokenizer = chat_tokenizer(CHATML)
    letters = [token_id(tokenizer, letter) for letter in "hello"]
    assert tuple(letters) != _ids(tokenizer, "hello")
    half = [token_id(tokenizer, token) for token in "ðŁ"]
    special = [token_id(tokenizer, "<|im_start|>")]
    end = [token_id(tokenizer, "<|im_end|>")]
    conversation = _conversation(tokenizer)
    for ids in ([*letters, *end], [*half, *end], half, [*special, *letters, *special, *end]):
        conversation.add_turn(_written(tokenizer, ids))
        conversation.add_messages([USER])
    (part,) = conversation.parts
    assert [list(segment.ids) for segment in part.segments[::2]] == [
        [*letters, *end], [*half, *end], half, [*special, *letters, *special, *end]
    ]  # fmt: skip
    assert part.rewritten_at_turn is None


def test_dropped_thinking_goes_on_in_a_part_that_begins_with_what_the_template_writes() -> None:
    tokenizer = chat_tokenizer(THINKING)
    conversation = _conversation(tokenizer)
    conversation.add_turn(_written(tokenizer, "<think>\nwhy\n</think>\n\nyes<|im_end|>"))
    conversation.add_messages([USER])
    conversation.add_turn(_written(tokenizer, "<think>\nhm\n</think>\n\nno<|im_end|>"))
    first, second = _texts(conversation, tokenizer)
    assert first == [
        "<|im_start|>user\nuser asks<|im_end|>\n<|im_start|>assistant\n",
        "<think>\nwhy\n</think>\n\nyes<|im_end|>",
    ]
    assert second == [
        "<|im_start|>user\nuser asks<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
        "<|im_start|>user\nuser asks<|im_end|>\n<|im_start|>assistant\n",
        "<think>\nhm\n</think>\n\nno<|im_end|>",
    ]
    assert [part.rewritten_at_turn for part in conversation.parts] == [None, 1]
    said = ChatMessage(role="assistant", content="<think>\nwhy\n</think>\n\nyes")
    assert conversation.parts[1].messages == (USER, said, USER)


def test_masked_student_goes_on_from_its_own_tokens() -> None:
    tokenizer = chat_tokenizer(THINKING)
    conversation = _conversation(tokenizer, on_rewritten="mask")
    turns = ["<think>\nwhy\n</think>\n\nyes<|im_end|>", "cut", "no<|endoftext|>", "so<|im_end|>"]
    for turn in turns:
        conversation.add_turn(_written(tokenizer, turn))
        conversation.add_messages([USER])
    ((_, *texts),) = _texts(conversation, tokenizer)
    asks = "\n<|im_start|>user\nuser asks<|im_end|>\n<|im_start|>assistant\n"
    assert texts == [turns[0], asks, turns[1], f"<|im_end|>{asks}", turns[2], asks, turns[3], asks]
    (part,) = conversation.parts
    assert [segment.is_masked for segment in part.segments[::2]] == [False, True, True, True]
    assert part.rewritten_at_turn == 1


def test_thinking_is_kept_while_tools_answer() -> None:
    tokenizer = chat_tokenizer(THINKING)
    conversation = _conversation(tokenizer)
    for _ in range(3):
        conversation.add_turn(_written(tokenizer, "<think>\nwhy\n</think>\n\ncall<|im_end|>"))
        conversation.add_messages([TOOL])
    assert len(conversation.parts) == 1
    assert len(conversation.parts[0].segments) == 6


@pytest.mark.parametrize(
    ("template", "parts"), [(THINKING, 1), (CHATML + "{% if opens_thinking %}{{- '<think>\\n' }}{% endif %}", 1)]
)
def test_thinking_that_the_prompt_opened_belongs_to_the_turn(template: str, parts: int) -> None:
    """Whether the template takes a turn apart or writes it as it is."""
    tokenizer = chat_tokenizer(template)
    conversation = _conversation(tokenizer, opens_thinking=True)
    assert conversation.add_turn(_written(tokenizer, "why\n</think>\n\nyes<|im_end|>")) == "why\n</think>\n\nyes"
    conversation.add_messages([TOOL])
    conversation.add_turn(_written(tokenizer, "cut in a thought"))
    conversation.add_messages([TOOL])
    assert len(conversation.parts) == parts
    ((prompt, *_, last),) = _texts(conversation, tokenizer)
    assert prompt.endswith("<|im_start|>assistant\n<think>\n")
    assert last.startswith("<|im_end|>\n")
    assert last.endswith("<|im_start|>assistant\n<think>\n")


def test_closed_thinking_of_the_generation_prompt_is_rewritten_history_where_the_template_drops_it() -> None:
    tokenizer = chat_tokenizer(THINKING)
    conversation = _conversation(tokenizer, enable_thinking=False)
    conversation.add_turn(_written(tokenizer, "yes<|im_end|>"))
    conversation.add_messages([TOOL])
    assert [part.rewritten_at_turn for part in conversation.parts] == [None, 1]
    assert _texts(conversation, tokenizer)[1][0].startswith(
        "<|im_start|>user\nuser asks<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
    )


@pytest.mark.parametrize(
    ("turn", "num_parts"), [("yes<|eot_id|>", 1), ("yes <|eot_id|>", 2), ("yes \n", 2), ("\nyes", 2)]
)
def test_stripped_white_space_is_rewritten_history(turn: str, num_parts: int) -> None:
    tokenizer = chat_tokenizer(HEADERS)
    conversation = _conversation(tokenizer)
    conversation.add_turn(_written(tokenizer, turn))
    conversation.add_messages([USER])
    assert len(conversation.parts) == num_parts
    (prompt, *_), *_ = _texts(conversation, tokenizer)
    assert prompt.startswith("<|begin_of_text|><|start_header_id|>")
    together = tokenizer.decode(list(conversation.ids))
    assert together.count("<|begin_of_text|>") == 1
    assert "\n\nyes<|eot_id|><|start_header_id|>user" in together


def test_end_token_that_the_template_does_not_write_is_rewritten_history() -> None:
    tokenizer = chat_tokenizer(CHATML)
    conversation = _conversation(tokenizer)
    assert conversation.add_turn(_written(tokenizer, "yes<|endoftext|>")) == "yes"
    conversation.add_messages([USER])
    assert conversation.parts[1].prompt_ids == _ids(
        tokenizer,
        "<|im_start|>user\nuser asks<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
        "<|im_start|>user\nuser asks<|im_end|>\n<|im_start|>assistant\n",
    )


def test_calls_that_the_template_writes_anew_are_rewritten_history() -> None:
    """The student wrote no blank behind the colons; as a text, its turn stays as it is."""
    tokenizer = chat_tokenizer(CHATML)
    turn = '<tool_call>\n{"name":"f","arguments":{"a":1}}\n</tool_call>'
    asked = ChatMessage(role="assistant", tool_calls=(ToolCall(name="f", arguments={"a": 1}),))
    for replacement, num_parts in ((None, 1), (asked, 2)):
        conversation = _conversation(tokenizer)
        conversation.add_turn(_written(tokenizer, f"{turn}<|im_end|>"))
        if replacement:
            conversation.replace_turn(replacement)
        conversation.add_messages([TOOL])
        assert len(conversation.parts) == num_parts
        written = '{"name": "f", "arguments": {"a": 1}}' if replacement else '{"name":"f","arguments":{"a":1}}'
        assert f"<tool_call>\n{written}\n</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>" in tokenizer.decode(
            list(conversation.ids)
        )


def test_tools_and_variables_reach_the_template() -> None:
    tokenizer = chat_tokenizer(CHATML)
    template = Template(tokenizer=tokenizer, num_ids=1_000, tools=('{"type": "function", "function": {"name": "f"}}',))
    assert '\n{"type": "function", "function": {"name": "f"}}\n</tools>' in template.render([USER])


def test_rest_is_tokenized_as_behind_the_token_before_it() -> None:
    """An end token that swallows white space swallows that of the rest, as in the whole text."""
    tokenizer = chat_tokenizer(CHATML, swallows=True)
    conversation = _conversation(tokenizer)
    conversation.add_turn(_written(tokenizer, "yes<|im_end|>"))
    conversation.add_messages([USER])
    whole = "<|im_start|>user\nuser asks<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
    whole += "<|im_start|>user\nuser asks<|im_end|>\n<|im_start|>assistant\n"
    assert conversation.ids == _ids(tokenizer, whole)
    assert token_id(tokenizer, "<|im_start|>") == conversation.parts[0].segments[1].ids[0]


def test_template_without_marks_at_the_end_of_a_prompt() -> None:
    tokenizer = chat_tokenizer(PLAIN)
    conversation = _conversation(tokenizer)
    conversation.add_turn(_written(tokenizer, " t<|im_end|>"))
    conversation.add_messages([USER])
    assert _texts(conversation, tokenizer) == [
        ["user: user asks<|im_end|>assistant: ", " t<|im_end|>", "user: user asks<|im_end|>assistant: "]
    ]


def test_what_a_template_refuses_is_told() -> None:
    tokenizer = chat_tokenizer("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InvalidEpisodeError, match=r"chat template refuses its messages: .*roles must alternate"):
        _conversation(tokenizer)
    tokenizer.chat_template = ""
    with pytest.raises(InvalidEpisodeError, match="has no chat template: put a template"):
        _conversation(tokenizer)


def test_token_without_a_row_is_told() -> None:
    tokenizer = chat_tokenizer(CHATML)
    with pytest.raises(InvalidEpisodeError, match=r"have token '.*' \(id \d+\), and the student's model has rows"):
        _conversation(tokenizer, num_ids=20)


def test_template_that_leaves_out_the_last_turn_cannot_be_masked() -> None:
    tokenizer = chat_tokenizer("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}")
    conversation = _conversation(tokenizer, on_rewritten="mask")
    conversation.add_turn(_written(tokenizer, "yes<|im_end|>"))
    with pytest.raises(InvalidEpisodeError, match="on_rewritten_history=rerender"):
        conversation.add_messages([USER])


def test_first_space_of_a_turn_survives_a_decoder_that_drops_it() -> None:
    """Llama 2 writes a word and the space before it as one token, and decodes a text without its first space."""
    vocabulary = {token: index for index, token in enumerate(["<|im_end|>", "\u2581a", "\u2581b", "c"])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    backend.add_special_tokens(["<|im_end|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    template = Template(tokenizer=tokenizer, num_ids=4)
    assert tokenizer.decode([1, 3]) == "ac"
    assert [template.decode_after(last, [1, 3, 2]) for last in (0, 1, 3)] == [" ac b"] * 3
