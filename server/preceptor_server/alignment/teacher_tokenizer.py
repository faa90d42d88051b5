"""The teacher's own tokenizer: encodes prompts, renders chats, and says what it is. Knows nothing of the model.

`encode` of the tokenizers library holds the interpreter's lock until it is done; `encode_batch_fast` lets it go. A long
text is encoded in pieces, where the tokenizer allows that, so that memory stays small and it can be given up half way.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from preceptor.fingerprint import tokenizer_id, vocabulary_id
from preceptor.json_values import Json
from preceptor.model_source import InvalidSourceError, check_source, load_error
from preceptor.turns import joined_ids, turn_end_id
from preceptor.wire import TokenArray
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from preceptor_server.alignment.chat_template import MAX_SECONDS, ChatTemplate, limited
from preceptor_server.alignment.render_process import RenderProcess
from preceptor_server.alignment.text_bound import bound_of
from preceptor_server.alignment.text_pieces import can_be_cut, pieces_of
from preceptor_server.alignment.too_long import too_long
from preceptor_server.errors import InvalidRequestError, StartupError


def go_on() -> None:
    """The check of work that nobody gives up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedToken:
    """A token with a role of its own."""

    id: int
    text: str


class TeacherTokenizer:
    """A fast tokenizer of transformers, and its fingerprints."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self.template = ChatTemplate(tokenizer)
        self.json: str = self._backend.to_str()
        self.chat_template = self.template.text
        self.template_names = self.template.names
        """Of several chat templates; the default one is used."""
        self.has_chat_template = self.chat_template is not None
        self.takes_chat_arguments = self.template.text_with_tools is not None
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
        ids = tokenizer.get_vocab().values()
        self.vocabulary_size = max(ids, default=-1) + 1
        """One more than its largest id: ids may have holes."""
        special = {token.id for token in self.special_tokens}
        self.text_size = max((i for i in ids if i not in special), default=-1) + 1
        """The same of the tokens that text may become."""
        # It also ends truncation and padding that the file asks for: from here on any thread may encode.
        self.prefix_ids = _prefix_ids(tokenizer)
        """What it writes before every text by itself, such as a BOS; may be empty."""
        vocabulary = self._backend.get_vocab(with_added_tokens=False)
        self.bound = bound_of(self._backend, vocabulary=vocabulary)
        """The fewest tokens of a text, known without tokenizing it."""
        self._is_own = type(tokenizer)._encode_plus is not PreTrainedTokenizerFast._encode_plus
        self._can_be_cut = not self._is_own and can_be_cut(self._backend, vocabulary=vocabulary)

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """What it says itself of how a response ends; a model's settings may name more."""
        return joined_ids(self._tokenizer.eos_token_id, self.turn_end_id)

    def encode(
        self,
        text: str,
        *,
        add_special_tokens: bool,
        field: str,
        room_tokens: int | None = None,
        check: Callable[[], None] = go_on,
    ) -> TokenArray:
        """Ids of a text, which something follows. With `add_special_tokens` it begins with `prefix_ids`, once: a text
        that begins with them already, such as one that a chat template wrote, stays as it is. What the tokenizer puts
        behind a whole text, such as an end token, is never added.

        Raises InvalidRequestError, also where these are more than `room_tokens`: then as soon as that is certain.
        `check` is called now and then, and may raise to give the text up.
        """
        if room_tokens is not None and self.bound.least_tokens(text, stop_above=room_tokens) > room_tokens:
            raise too_long(field, room_tokens)
        parts, num_tokens = [], 0
        for piece in pieces_of(text) if self._can_be_cut else (text,):
            check()
            ids = self._encode_piece(piece, field=field)
            num_tokens += len(ids)
            if room_tokens is not None and num_tokens > room_tokens:
                raise too_long(field, room_tokens)
            parts.append(ids)
        bare = np.concatenate([np.zeros(0, np.int64), *parts])
        begins = np.array_equal(bare[: len(self.prefix_ids)], self.prefix_ids)
        whole = np.concatenate([self.prefix_ids, bare]) if add_special_tokens and not begins else bare
        if not len(whole):
            raise InvalidRequestError(field, "encodes to no token at all")
        if room_tokens is not None and len(whole) > room_tokens:
            raise too_long(field, room_tokens)
        return whole

    def _encode_piece(self, text: str, *, field: str) -> TokenArray:
        try:
            if self._is_own:
                ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
            else:
                ids = self._backend.encode_batch_fast([text], add_special_tokens=False)[0].ids
        except (TypeError, UnicodeEncodeError) as error:  # what the library says of half of a surrogate pair
            raise InvalidRequestError(field, "holds half of a surrogate pair, which is no text") from error
        return np.asarray(ids, np.int64)

    def build_renderer(self) -> RenderProcess | None:
        """A process that renders chats; None where there is no template, and where this tokenizer renders in a way of
        its own, which that process does not know."""
        is_own = type(self._tokenizer).apply_chat_template is not PreTrainedTokenizerBase.apply_chat_template
        return None if self._tokenizer.chat_template is None or is_own else RenderProcess(self._tokenizer)

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
        text = self.template.render(messages, tools=tools, arguments=arguments, field=field)
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
