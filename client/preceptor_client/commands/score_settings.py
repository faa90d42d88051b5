"""Every setting of `preceptor score`: types, bounds, and the checks across fields."""

from __future__ import annotations

import json
from typing import Literal, Self

from preceptor.json_values import JsonObject, plain_object, read_object
from pydantic import Field, field_validator, model_validator

from preceptor_client.commands.connection_settings import ConnectionSettings
from preceptor_client.types import Chat, ChatMessage
from preceptor_client.url import checked_url


class ScoreSettings(ConnectionSettings):
    """Asks a teacher what it thinks of one response."""

    address: str = ""
    """The teacher server, as HOST:PORT; several with commas between: replicas of one teacher. grpcs://HOST:PORT is
    asked by TLS. Either this or --http."""
    http: str = ""
    """URL of the server's HTTP side, to ask there instead: http://HOST:PORT. Either this or --address."""
    response: str = Field(min_length=1)
    """The text to score. It is encoded on its own: begin it with a space where the text would have one."""
    prompt: str = ""
    """The text before the response, encoded by the teacher's tokenizer. Either this or --chat."""
    chat: str = ""
    """A user's message, rendered with the teacher's chat template. Either this or --prompt."""
    tools: str = ""
    """With --chat: the tools that the assistant may call, as the JSON text of a list of objects."""
    chat_template_kwargs: str = ""
    """With --chat: further variables of the teacher's chat template, as the JSON text of an object, such as
    {"enable_thinking": false}."""
    top_k: int = Field(8, ge=1, le=1024)
    """Size of the teacher's support per position."""
    temperature: float = Field(1.0, gt=0, allow_inf_nan=False)
    """The teacher's logits are divided by it before the softmax."""
    segmentation: Literal["as_is", "mask", "canonical"] | None = None
    """Where the teacher would cut the text otherwise: score it as_is, mask the position, or score the teacher's own
    (canonical) tokens. Default: the server's choice."""
    adapter: str = ""
    """Name of one of its adapters; empty asks the teacher as it is."""
    show: int = Field(5, ge=0, le=64)
    """How many of the teacher's likeliest tokens to show per position."""
    timeout_seconds: float = Field(30.0, gt=0, le=3600)
    """How long to wait for the teacher, retries included."""

    @field_validator("http")
    @classmethod
    def _http_is_a_url(cls, http: str) -> str:
        return checked_url(http) if http else http

    @field_validator("tools")
    @classmethod
    def _tools_are_a_list(cls, tools: str) -> str:
        _read_tools(tools)
        return tools

    @field_validator("chat_template_kwargs")
    @classmethod
    def _kwargs_are_an_object(cls, kwargs: str) -> str:
        read_object(kwargs or "{}")
        return kwargs

    @model_validator(mode="after")
    def _has_one_server(self) -> Self:
        if bool(self.address) == bool(self.http):
            raise ValueError("give either --address or --http")
        return self

    @model_validator(mode="after")
    def _has_one_prompt(self) -> Self:
        if bool(self.prompt) == bool(self.chat):
            raise ValueError("give either --prompt or --chat")
        return self

    @model_validator(mode="after")
    def _has_a_chat_for_what_belongs_to_one(self) -> Self:
        for option, value in (("--tools", self.tools), ("--chat-template-kwargs", self.chat_template_kwargs)):
            if value and not self.chat:
                raise ValueError(f"{option} belongs to --chat, not to --prompt: leave it out")
        return self

    def as_chat(self) -> Chat:
        """The conversation of --chat."""
        return Chat(
            (ChatMessage("user", self.chat),),
            tools=_read_tools(self.tools),
            template_arguments=read_object(self.chat_template_kwargs or "{}"),
        )


def _read_tools(text: str) -> tuple[JsonObject, ...]:
    """Raises ValueError unless it is empty or the text of a list of objects."""
    try:
        tools = json.loads(text or "[]")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(tools, list):
        raise ValueError(f"holds a {type(tools).__name__}, must be a JSON list of objects")
    return tuple(plain_object(tool) for tool in tools)
