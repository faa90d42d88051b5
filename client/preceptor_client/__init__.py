"""Talks to a Preceptor teacher server. Importing it pulls in neither torch nor a tokenizer library."""

from preceptor_client.errors import PreceptorError
from preceptor_client.teacher import BlockingTeacherClient, RetryPolicy, TeacherClient
from preceptor_client.types import (
    Chat,
    ChatMessage,
    GroupScores,
    Limits,
    Prompt,
    ResponseScores,
    ServerInfo,
    StudentIds,
    TeacherIds,
    TeacherInfo,
    Text,
)

__all__ = [
    "BlockingTeacherClient",
    "Chat",
    "ChatMessage",
    "GroupScores",
    "Limits",
    "PreceptorError",
    "Prompt",
    "ResponseScores",
    "RetryPolicy",
    "ServerInfo",
    "StudentIds",
    "TeacherClient",
    "TeacherIds",
    "TeacherInfo",
    "Text",
]
