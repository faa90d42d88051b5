"""Talks to a Preceptor teacher server. Importing it pulls in neither torch nor a tokenizer library."""

from preceptor_client.errors import AccessDeniedError, NotInCacheError, PreceptorError
from preceptor_client.score_cache import ScoreCache
from preceptor_client.teacher import BlockingTeacherClient, RetryPolicy, TeacherClient
from preceptor_client.transport import Transport, TransportError
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
    "AccessDeniedError",
    "AlignmentReport",
    "BlockingTeacherClient",
    "Chat",
    "ChatMessage",
    "GroupScores",
    "Limits",
    "NotInCacheError",
    "PreceptorError",
    "Prompt",
    "Registration",
    "ResponseScores",
    "RetryPolicy",
    "ScoreCache",
    "ServerInfo",
    "StudentIds",
    "TeacherClient",
    "TeacherIds",
    "TeacherInfo",
    "Text",
    "ToolCall",
    "Transport",
    "TransportError",
    "WeightUpdate",
]
