"""Between the wire's ChatPrompt and the conversation that is rendered. Knows nothing of responses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from preceptor.chat import Chat
from preceptor.v1 import teacher_pb2 as pb
from preceptor.wire import TokenArray

from preceptor_server.alignment.sent_chat import (
    FIELD,
    SentChat,
    SentMessage,
    SentToolCall,
    check_num_messages,
    read_chat,
)

if TYPE_CHECKING:
    from preceptor_server.alignment.teacher_tokenizer import TeacherTokenizer  # imports transformers

MESSAGES = f"{FIELD}.messages"


def render_chat(sent: pb.ChatPrompt, tokenizer: TeacherTokenizer) -> TokenArray:
    """Ids of the conversation in the teacher's template. Raises InvalidRequestError with the wire's field."""
    chat = decode_chat(sent)
    return tokenizer.render(
        [message.as_template_message() for message in chat.messages],
        tools=chat.tools,
        arguments=chat.template_arguments,
        field=MESSAGES,
    )


def decode_chat(sent: pb.ChatPrompt) -> Chat:
    """Raises InvalidRequestError where a text is not the JSON that it shall be, naming its field."""
    return read_chat(to_sent_chat(sent))


def to_sent_chat(sent: pb.ChatPrompt) -> SentChat:
    """Takes the message apart, unread. Raises InvalidRequestError where it has no messages, or too many."""
    check_num_messages(len(sent.messages))
    return SentChat(
        messages=tuple(map(_to_message, sent.messages)),
        tools=tuple(sent.tools),
        template_arguments=sent.template_arguments,
    )


def _to_message(message: pb.ChatMessage) -> SentMessage:
    return SentMessage(
        role=message.role,
        content=message.content,
        tool_calls=tuple(
            SentToolCall(name=call.name, arguments=call.arguments, id=call.id) for call in message.tool_calls
        ),
        tool_call_id=message.tool_call_id,
        name=message.name,
        reasoning_content=message.reasoning_content if message.HasField("reasoning_content") else None,
    )
