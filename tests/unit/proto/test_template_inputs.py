"""The refusal of what either side's template would leave out; more of it is tested where the server renders chats."""

from __future__ import annotations

from dataclasses import replace

import pytest
from preceptor.template_inputs import TemplateInputError, TemplateInputs, refuse_unread
from preceptor.template_names import names_in

STUDENT = "the student's chat template"
CHAT = TemplateInputs(
    messages=[{"role": "user", "content": "hi"}],
    tools=[],
    arguments={"enable_thinking": False},
    field="prompt.chat.messages",
)


def test_the_refusal_says_whose_template_it_is_and_names_the_field_beside_the_messages() -> None:
    with pytest.raises(TemplateInputError) as caught:
        refuse_unread(CHAT, names_in("{{ messages }}{{ style }}"), special_tokens=(), template=STUDENT)
    assert caught.value.field == "prompt.chat.template_arguments"
    assert caught.value.message == (
        "'enable_thinking' is never read by the student's chat template, which reads 'style': "
        "correct the name or leave it out"
    )


@pytest.mark.parametrize(("field", "tools"), [("prompt.chat.messages", "prompt.chat.tools"), ("messages", "tools")])
def test_tools_stand_beside_the_messages(field: str, tools: str) -> None:
    chat = replace(CHAT, tools=[{}], arguments={}, field=field)
    with pytest.raises(TemplateInputError, match=f"^{tools}: the student's chat template never reads tools") as caught:
        refuse_unread(chat, names_in("{{ messages }}"), special_tokens=(), template=STUDENT)
    assert caught.value.field == tools


def test_what_the_template_reads_is_let_through() -> None:
    chat = replace(CHAT, tools=[{}], messages=[{"role": "assistant", "tool_calls": [{}], "reasoning_content": "hm"}])
    source = "{{ tools }}{{ enable_thinking }}{% for m in messages %}{{ m.tool_calls }}{{ m.thinking }}{% endfor %}"
    refuse_unread(chat, names_in(source), special_tokens=("bos_token",), template=STUDENT)
