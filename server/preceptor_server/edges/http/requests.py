"""What can be asked over HTTP: the bodies of requests, bounded and described. Nothing is looked up here."""

# T = tokens of a response, C = candidates per position

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from preceptor.chat import MAX_TOOLS
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

MAX_NAME = 128
MAX_ID = 2**32 - 1
MAX_PAPER_TOKENS = 1024

TokenId = Annotated[int, Field(ge=0, le=MAX_ID)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Segmentation = Literal["as_is", "mask", "canonical", "paper"]


class Body(BaseModel):
    """A part of a request. Unknown fields are refused, and nothing is converted: "5" is no number."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


def _object_or_its_text(value: JsonValue) -> JsonValue:
    if not isinstance(value, dict | str):
        raise ValueError("must be a JSON object, or the text of one")
    return value


class FunctionBody(Body):
    """What a call of a tool calls, and with what."""

    name: str = Field(min_length=1, max_length=MAX_NAME)
    """Name of the function."""
    arguments: Annotated[
        JsonValue,
        AfterValidator(_object_or_its_text),
        WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object", "additionalProperties": True}]}),
    ]
    """A JSON object, or its text, as OpenAI has it."""


class ToolCallBody(Body):
    """A call of a tool that an assistant made in an earlier turn."""

    id: str = Field("", max_length=MAX_NAME)
    """What the answering message repeats as tool_call_id."""
    type: Literal["function"] = "function"
    """There is no other."""
    function: FunctionBody
    """The call."""


class Message(Body):
    """One turn of a conversation, in OpenAI's shape."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": ["content"]}, {"required": ["tool_calls"]}]})

    role: str = Field(max_length=MAX_NAME)
    """"system", "user", "assistant", "tool", or another role that the teacher's chat template knows."""
    tool_calls: list[ToolCallBody] = Field([], min_length=1)
    """The tools that this turn called. Refused where the template never reads them."""
    content: str | None = Field(None, validate_default=True)
    """What was said; may be null or absent beside tool_calls, which is an empty text to the template."""
    tool_call_id: str = Field("", max_length=MAX_NAME)
    """In a tool's turn: the call that it answers."""
    name: str = Field("", max_length=MAX_NAME)
    """Of the speaker, or of the tool that answers."""
    reasoning_content: str | None = None
    """What the assistant thought before the content. Refused where the template never reads it."""

    @field_validator("content")
    @classmethod
    def _says_something(cls, content: str | None, info: ValidationInfo) -> str | None:
        if content is None and info.data.get("tool_calls") == []:
            raise ValueError("is missing: only a turn with tool_calls may leave it out")
        return content


def _described_as_one_kind(schema: dict[str, Any]) -> None:  # Any: whatever JSON holds
    absent = {"properties": dict.fromkeys(PromptBody.OF_MESSAGES, False)}
    schema["oneOf"] = [{"required": [kind]} | ({} if kind == "messages" else absent) for kind in PromptBody.KINDS]


class PromptBody(Body):
    """What stands before the responses: exactly one of text, messages, student_ids, teacher_ids."""

    KINDS: ClassVar = ("text", "messages", "student_ids", "teacher_ids")
    OF_MESSAGES: ClassVar = ("tools", "chat_template_kwargs")
    model_config = ConfigDict(json_schema_extra=_described_as_one_kind)

    text: str = Field("", min_length=1)
    """Text, cut by the teacher's tokenizer."""
    omit_special_tokens: bool = False
    """With text: leave out the special tokens that the teacher's tokenizer adds by itself, such as a leading BOS."""
    messages: list[Message] = Field([], min_length=1)
    """A conversation, rendered with the teacher's own chat template, followed by its opening of an assistant's turn."""
    tools: list[dict[str, JsonValue]] = Field([], min_length=1, max_length=MAX_TOOLS)
    """With messages: the tools that the assistant may call, each as {"type": "function", "function": {"name", ...}}."""
    chat_template_kwargs: dict[str, JsonValue] = {}
    """With messages: further variables of the chat template, such as {"enable_thinking": false}. One that the template
    never reads is refused."""
    student_ids: list[TokenId] = Field([], min_length=1)
    """Ids of the tokenizer that `tokenizer` names."""
    teacher_ids: list[TokenId] = Field([], min_length=1)
    """Ids of the teacher's own tokenizer."""

    @model_validator(mode="after")
    def _is_one_kind(self) -> Self:
        given = [kind for kind in self.KINDS if kind in self.model_fields_set]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(self.KINDS)}, not {' and '.join(given) or 'none'}")
        if self.omit_special_tokens and not self.text:
            raise ValueError(f"omit_special_tokens belongs to text, not to {given[0]}")
        for name in self.OF_MESSAGES:
            if name in self.model_fields_set and not self.messages:
                raise ValueError(f"{name} belongs to messages, not to {given[0]}")
        return self


class TextOrIds(Body):
    """A response: either its text or its ids, of the tokenizer that `tokenizer` names."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["text"]}, {"required": ["ids"]}]})

    text: str = Field("", min_length=1)
    """Text, cut on its own: begin it with a space where the whole has one. Special tokens in it count as such."""
    ids: list[TokenId] = Field([], min_length=1)
    """T ids."""

    @model_validator(mode="after")
    def _is_one_kind(self) -> Self:
        if bool(self.text) == bool(self.ids):
            raise ValueError("give either text or ids")
        return self


class ResponseBody(TextOrIds):
    """One response to score."""

    score_mask: list[bool] = Field([], min_length=1)
    """One per token: false = context only. Default: all are scored. At least one must be, or none of the whole group:
    then the prompt is only read, and refused where it cannot be."""
    candidate_ids: list[Annotated[list[TokenId], Field(min_length=1)]] = Field([], min_length=1)
    """Ids whose logprobs are wanted too: for each of the T tokens a list of C."""
    student_logprobs: list[Number] = Field([], min_length=1)
    """The student's own logprobs, one per token: sent back unchanged, for whoever looks at both."""


class TopkRequest(Body):
    """What the teacher shall be asked."""

    prompt: PromptBody
    """What stands before the responses."""
    responses: list[ResponseBody] = []
    """What to score. Empty or absent: see `positions`."""
    positions: Literal["next", "all"] | None = None
    """Without responses only. next (default): what may follow the prompt. all: every token of the prompt but its first
    is scored as if it were a response."""
    top_k: int = Field(20, ge=1, le=MAX_ID)
    """Size of the support, K; /v1/info tells the limit."""
    temperature: float = Field(1.0, gt=0, allow_inf_nan=False)
    """The teacher's logits are divided by it before the softmax."""
    tokenizer: str = Field("", max_length=MAX_NAME)
    """Whose ids and texts the responses are: a name or an id of /v1/info, or an id that was registered over gRPC.
    Default: the teacher's own."""
    segmentation: Segmentation | None = None
    """What to do where student and teacher would cut the same bytes into other tokens. Default: as_is where ids
    correspond one to one, else canonical."""
    paper_token_ids: list[TokenId] = Field([], max_length=MAX_PAPER_TOKENS)
    """With paper: ids whose first occurrence in a response is masked."""
    teacher: str = Field("", max_length=MAX_NAME)
    """Name of the teacher. Default: the only one."""
    adapter: str = Field("", max_length=MAX_NAME)
    """Name of one of its adapters. Default: none."""
    request_id: str = Field("", max_length=MAX_NAME)
    """Echoed in the answer."""
    batch_invariant: bool = False
    """Score in a forward of its own, so that the last bit does not depend on what else the server does."""
    logprob_dtype: Literal["f16", "f32"] = "f32"
    """How the logprobs of supports and candidates are rounded."""


class AlignRequest(Body):
    """A text whose alignment shall be shown."""

    response: TextOrIds
    """The text."""
    prompt: PromptBody | None = None
    """What stands before it: takes its room in the teacher's context. Default: nothing."""
    tokenizer: str = Field("", max_length=MAX_NAME)
    """As in /v1/topk."""
    teacher: str = Field("", max_length=MAX_NAME)
    """As in /v1/topk."""
    segmentation: Segmentation | None = None
    """As in /v1/topk."""
    paper_token_ids: list[TokenId] = Field([], max_length=MAX_PAPER_TOKENS)
    """As in /v1/topk."""
