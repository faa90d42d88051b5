"""The teacher's own tokenizer: encodes prompts, renders chats, and says what it is. Knows nothing of the model."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from preceptor.fingerprint import tokenizer_id, vocabulary_id
from preceptor.json_values import Json
from preceptor.model_source import InvalidSourceError, check_source, load_error
from preceptor.turns import joined_ids, turn_end_id
from preceptor.wire import TokenArray
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from preceptor_server.alignment.chat_template import MAX_SECONDS, ChatTemplate, limited
from preceptor_server.errors import InvalidRequestError, StartupError


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedToken:
    """A token with a role of its own."""

    id: int
    text: str


class TeacherTokenizer:
    """A fast tokenizer of transformers, and its fingerprints."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._template = ChatTemplate(tokenizer)
        self.json: str = tokenizer.backend_tokenizer.to_str()
        self.chat_template = self._template.text
        self.template_names = self._template.names
        """Of several chat templates; the default one is used."""
        self.has_chat_template = self.chat_template is not None
        self.takes_chat_arguments = self._template.text_with_tools is not None
        """Whether there is a template for tools and template arguments; it may still refuse them."""
        with limited(MAX_SECONDS):
            self.turn_end_id = turn_end_id(tokenizer)
        """What the chat template ends a turn with; None where that is no special token."""
        self.tokenizer_id = tokenizer_id(self.json, self.chat_template)
        self.vocabulary_id = vocabulary_id(self.json)
        self.special_tokens = tuple(
            NamedToken(id=token_id, text=str(token))
            for token_id, token in sorted(tokenizer.added_tokens_decoder.items())
            if token.special
        )
        self.vocabulary_size = max(tokenizer.get_vocab().values(), default=-1) + 1
        """One more than its largest id: ids may have holes."""
        special = {token.id for token in self.special_tokens}
        self.text_size = max((i for i in tokenizer.get_vocab().values() if i not in special), default=-1) + 1
        """The same of the tokens that text may become."""
        # It also ends truncation and padding that the file asks for: from here on any thread may encode.
        self.prefix_ids = _prefix_ids(tokenizer)
        """What it writes before every text by itself, such as a BOS; may be empty."""

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """What it says itself of how a response ends; a model's settings may name more."""
        return joined_ids(self._tokenizer.eos_token_id, self.turn_end_id)

    def encode(self, text: str, *, add_special_tokens: bool, field: str) -> TokenArray:
        """Ids of a text, which something follows. With `add_special_tokens` it begins with `prefix_ids`, once: a text
        that begins with them already, such as one that a chat template wrote, stays as it is. What the tokenizer puts
        behind a whole text, such as an end token, is never added."""
        try:
            ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        except TypeError as error:  # what the library says of half of a surrogate pair
            raise InvalidRequestError(field, "holds half of a surrogate pair, which is no text") from error
        bare = np.asarray(ids, np.int64)
        begins = np.array_equal(bare[: len(self.prefix_ids)], self.prefix_ids)
        whole = np.concatenate([self.prefix_ids, bare]) if add_special_tokens and not begins else bare
        if not len(whole):
            raise InvalidRequestError(field, "encodes to no token at all")
        return whole

    def texts_of(self, ids: Sequence[int]) -> list[str]:
        """Each id by itself as text, as well as the tokenizer can tell."""
        return [str(self._tokenizer.decode([token_id])) for token_id in ids]

    def render(
        self,
        messages: Sequence[Mapping[str, Json]],
        *,
        field: str,
        tools: Sequence[Mapping[str, Json]] = (),
        arguments: Mapping[str, Json] | None = None,
    ) -> TokenArray:
        """Ids of a conversation in the teacher's own template, as ChatTemplate.render writes it."""
        text = self._template.render(messages, tools=tools, arguments=arguments, field=field)
        # The template writes the special tokens that it wants.
        return self.encode(text, add_special_tokens=False, field=field)


def load_tokenizer(
    name: str, *, field: str = "engine.tokenizer", gguf_file: str | None, trust_remote_code: bool
) -> TeacherTokenizer:
    """Loads by hub id, folder, or GGUF inside a folder. Raises StartupError, which names `field`, the setting that
    `name` is from, where that fails."""
    is_models = field == "engine.model"
    try:
        check_source(
            name,
            field=field,
            gguf_file=gguf_file,
            gguf_field="engine.gguf_file" if is_models else "",
            tokenizer_field="engine.tokenizer" if is_models else "",
            needs=("tokenizer",),
        )
        tokenizer = AutoTokenizer.from_pretrained(name, gguf_file=gguf_file, trust_remote_code=trust_remote_code)
    except InvalidSourceError as error:
        raise StartupError(str(error)) from error
    except (OSError, ValueError, struct.error) as error:  # the last is of a GGUF file that is cut short
        raise StartupError(str(load_error(name, error, field=field))) from error
    if not tokenizer.is_fast:
        raise StartupError(f"{field}: {name} has no tokenizer.json, so it cannot be compared with a student's")
    return TeacherTokenizer(tokenizer)


def _prefix_ids(tokenizer: PreTrainedTokenizerBase) -> TokenArray:
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    return np.asarray(whole[: whole.index(bare[0])] if bare else [], np.int64)
