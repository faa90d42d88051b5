"""Talks to a Preceptor teacher server. Importing it pulls in neither torch nor a tokenizer library."""

from preceptor_client.errors import PreceptorError
from preceptor_client.teacher import BlockingTeacherClient, RetryPolicy, TeacherClient
from preceptor_client.types import (
    AlignmentReport,
    Chat,
    ChatMessage,
    GroupScores,
    Limits,
    Prompt,
    Registration,
    ResponseScores,
    ServerInfo,
    StudentIds,
    TeacherIds,
    TeacherInfo,
    Text,
    ToolCall,
    WeightUpdate,
)

__all__ = [
    "AlignmentReport",
    "BlockingTeacherClient",
    "Chat",
    "ChatMessage",
    "GroupScores",
    "Limits",
    "PreceptorError",
    "Prompt",
    "Registration",
    "ResponseScores",
    "RetryPolicy",
    "ServerInfo",
    "StudentIds",
    "TeacherClient",
    "TeacherIds",
    "TeacherInfo",
    "Text",
    "ToolCall",
    "WeightUpdate",
]
