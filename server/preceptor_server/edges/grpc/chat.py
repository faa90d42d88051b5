"""Takes a ChatPrompt apart, unread: its JSON is read where the conversation is rendered."""

from __future__ import annotations

from preceptor.v1 import teacher_pb2 as pb

from preceptor_server.alignment.sent_chat import SentChat, SentMessage, SentToolCall, check_num_messages


def to_sent_chat(sent: pb.ChatPrompt) -> SentChat:
    """Raises InvalidRequestError where it has no messages, or too many."""
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
