"""What is given to a chat template, and the refusal of what it would leave out in silence. Renders nothing.

Both sides render chats, the server the teacher's and the trainer the student's; both refuse the same things.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from preceptor.json_values import JsonObject
from preceptor.template_names import TemplateNames

RESERVED = frozenset(
    {
        "messages", "tools", "add_generation_prompt",
        # Further parameters of apply_chat_template and of what it calls: they would not reach the template.
        "self", "conversation", "conversations", "chat_template", "continue_final_message", "tokenize",
        "sanitize_control_tokens", "padding", "truncation", "max_length", "return_tensors", "return_dict",
        "return_assistant_tokens_mask", "tokenizer_kwargs",
        # Texts of the tokenizer's special tokens, whether or not it has them.
        "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
        "additional_special_tokens",
    }
)  # fmt: skip
"""Names that no template argument may have. `documents` is not among them: it goes to the template as it is."""
_REASONING_KEYS = ("reasoning_content", "thinking")
"""Where transformers puts a message's reasoning."""
_MAX_SHOWN_NAMES = 16
_MAX_SHOWN_NAME = 64
"""Characters of a name that an error repeats: it travels in metadata, whose size is bounded."""


class TemplateInputError(ValueError):
    """Something that the template would ignore, or that is not the caller's to give. `field` names it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateInputs:
    """A conversation as `apply_chat_template` takes it, and what errors call its parts."""

    messages: list[JsonObject]
    tools: list[JsonObject]
    arguments: JsonObject
    field: str
    """Of the messages; the others stand beside it."""

    @property
    def tools_field(self) -> str:
        return self._beside("tools")

    @property
    def arguments_field(self) -> str:
        return self._beside("template_arguments")

    def _beside(self, name: str) -> str:
        parent, dot, _ = self.field.rpartition(".")
        return f"{parent}{dot}{name}"


def refuse_unread(chat: TemplateInputs, names: TemplateNames, *, special_tokens: Iterable[str], template: str) -> None:
    """Raises TemplateInputError where a template with these names would ignore what was given, or where an argument
    has a name that is not the caller's to set. `special_tokens` are names, such as the keys of a tokenizer's
    `special_tokens_map`; `template` says whose it is, such as "the teacher's chat template"."""
    own = RESERVED.union(special_tokens)
    for name in chat.arguments:
        shown = repr(name[:_MAX_SHOWN_NAME])
        if name in own:
            raise TemplateInputError(chat.arguments_field, f"{shown} is set by Preceptor: leave it out")
        if name not in names.variables:
            readable = _listed(names.variables - own)
            message = f"{shown} is never read by {template}, which reads {readable}"
            raise TemplateInputError(chat.arguments_field, f"{message}: correct the name or leave it out")
    if chat.tools and "tools" not in names.variables:
        message = f"{template} never reads tools: leave them out, or describe them in a message"
        raise TemplateInputError(chat.tools_field, message)
    for index, turn in enumerate(chat.messages):
        for key, read_as in (("tool_calls", ("tool_calls",)), ("reasoning_content", _REASONING_KEYS)):
            if turn.get(key) and names.keys.isdisjoint(read_as):
                message = f"{template} never reads {key}: leave it out, or write it into the content"
                raise TemplateInputError(f"{chat.field}[{index}].{key}", message)


def _listed(names: Iterable[str]) -> str:
    listed = sorted(names)
    shown = ", ".join(repr(name[:_MAX_SHOWN_NAME]) for name in listed[:_MAX_SHOWN_NAMES])
    more = f" and {len(listed) - _MAX_SHOWN_NAMES} more" if len(listed) > _MAX_SHOWN_NAMES else ""
    return f"{shown}{more}" if shown else "no further variables"
