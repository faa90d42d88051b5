"""The model to train and its tokenizer: loads, checks, encodes prompts, saves. Knows nothing of teachers or steps."""

# V = vocabulary, D = hidden size

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from preceptor.fingerprint import tokenizer_id
from preceptor.json_values import Json
from preceptor.turns import joined_ids, turn_end_id
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from preceptor_client.train.data.examples import ExamplePrompt
from preceptor_client.train.errors import InvalidStudentError
from preceptor_client.train.student.config import StudentConfig
from preceptor_client.train.student.head import Head
from preceptor_client.train.student.head.matching import head_of
from preceptor_client.train.student.model_files import load_parts
from preceptor_client.train.student.module import StudentForScoring
from preceptor_client.train.student.rendering import render_chat
from preceptor_client.train.student.vocabulary import chosen_template, fit_vocabulary
from preceptor_client.train.student.ways import ExactWays, KnownWays

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Student:
    """A causal language model in evaluation mode (no dropout), with its tokenizer."""

    module: StudentForScoring
    """What training calls, and nothing else of the student. May be what wraps it and holds it as its own `module`, as
    DistributedDataParallel does."""
    tokenizer: PreTrainedTokenizerFast
    tokenizer_id: str
    end_token_ids: tuple[int, ...]
    notes: tuple[str, ...] = ()
    """What the user should know about it."""
    chat_template_kwargs: Mapping[str, Json] = field(default_factory=dict)
    """Variables for its chat template."""
    saved_chat_template: str | dict[str, str] | None = None
    """What the tokenizer came with, where it has several and one was chosen."""
    saved_generation_config: GenerationConfig
    """What the model came with. Kept off the model while it trains: its penalties would bend the rollouts."""

    @property
    def unwrapped(self) -> StudentForScoring:
        """The module without what wraps it."""
        module: torch.nn.Module = self.module
        while not isinstance(module, StudentForScoring):
            module = module.get_submodule("module")
        return module

    @property
    def model(self) -> PreTrainedModel:
        """To generate, to load and to save."""
        return self.unwrapped.model

    @property
    def head(self) -> Head:
        return self.unwrapped.head

    @property
    def ways(self) -> KnownWays:
        """How its batches are run."""
        return self.unwrapped.ways

    @property
    def pad_token_id(self) -> int:
        return self.unwrapped.pad_token_id

    @property
    def device(self) -> torch.device:
        return self.unwrapped.device

    @property
    def base(self) -> torch.nn.Module:
        """The model without its head."""
        return self.model.base_model

    @property
    def vocabulary_size(self) -> int:
        """Number of logits."""
        return self.head.vocabulary_size

    @property
    def max_length(self) -> int:
        """Longest sequence that the model's positions cover."""
        return max_length_of(self.model)

    def encode_prompt(
        self, prompt: ExamplePrompt, *, tools: Sequence[str] = (), template_kwargs: Mapping[str, Json] | None = None
    ) -> list[int]:
        """A text with the tokenizer's default special tokens; a conversation with its chat template, which opens the
        assistant's turn and is given the tools (JSON texts) and variables, which beat the student's own."""
        if isinstance(prompt, str):
            ids: list[int] = self.tokenizer(prompt)["input_ids"]
            return ids
        kwargs = {**self.chat_template_kwargs, **(template_kwargs or {})}
        text = render_chat(self.tokenizer, prompt, tools=tools, template_kwargs=kwargs)
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        assert isinstance(text, str)
        return text

    def decode_all(self, ids: Sequence[int]) -> str:
        """With special tokens."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=False)
        assert isinstance(text, str)
        return text

    def save(self, folder: Path) -> None:
        """Writes model, generation defaults and tokenizer, as `from_pretrained` reads them."""
        self.model.save_pretrained(folder)
        self.saved_generation_config.save_pretrained(folder)
        chosen = self.tokenizer.chat_template
        try:
            self.tokenizer.chat_template = self.saved_chat_template
            self.tokenizer.save_pretrained(folder)
        finally:
            self.tokenizer.chat_template = chosen


def load_student(config: StudentConfig, *, folder: Path | None = None, field: str = "student.model") -> Student:
    """Loads the model that the settings name, or the one in `folder` (a checkpoint) with the settings' dtype and
    device. `field` is the setting that named it, for what is told of one that cannot be loaded."""
    model, tokenizer = load_parts(config, folder=folder, field=field)
    return prepare_student(
        model,
        tokenizer,
        device=_device(config.device),
        end_token_ids=config.end_token_ids,
        chat_template=config.chat_template,
        chat_template_kwargs=config.chat_template_kwargs,
    )


def prepare_student(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    *,
    device: torch.device | None = None,
    end_token_ids: Sequence[int] = (),
    chat_template: str = "",
    chat_template_kwargs: Mapping[str, Json] | None = None,
) -> Student:
    """Makes a loaded model ready to be trained. `end_token_ids` replace what the model and its tokenizer say; the saved
    model names them. `chat_template` is the name of one of several, `chat_template_kwargs` its variables. Raises
    InvalidStudentError where that cannot be done."""
    saved_chat_template = tokenizer.chat_template
    tokenizer.chat_template, template_notes = chosen_template(tokenizer, name=chat_template)
    # transformers' wrappers hide the signature of `to`.
    model = model.to(device or torch.device("cpu")).eval()  # type: ignore[arg-type]
    for parameter in model.parameters():
        # Loaded weights may lie in a mapped file at any address, and a BLAS kernel may round by alignment: with fresh
        # storage a resumed run computes what the uninterrupted one did.
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
    generation_config = model.generation_config or GenerationConfig()
    model.generation_config = GenerationConfig()
    vocabulary = fit_vocabulary(
        tokenizer,
        num_rows=num_rows_of(model),
        named_end_ids=_checked_end_ids(end_token_ids, model)
        or joined_ids(
            generation_config.eos_token_id, _config_end(model), tokenizer.eos_token_id, turn_end_id(tokenizer)
        ),
    )
    if end_token_ids:
        generation_config.eos_token_id = list(vocabulary.end_token_ids)
    head, pad_token_id = head_of(model), vocabulary.pad_token_id
    ways = ExactWays(model, head=head, pad_token_id=pad_token_id, max_length=max_length_of(model))
    student = Student(
        module=StudentForScoring(model, head=head, ways=ways, pad_token_id=pad_token_id),
        tokenizer=tokenizer,
        tokenizer_id=tokenizer_id(tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template),
        end_token_ids=vocabulary.end_token_ids,
        notes=(*template_notes, *vocabulary.notes),
        chat_template_kwargs=dict(chat_template_kwargs or {}),
        saved_chat_template=saved_chat_template,
        saved_generation_config=generation_config,
    )
    _log.info("student loaded: type=%s device=%s dtype=%s", type(model).__name__, student.device, model.dtype)
    return student


def max_length_of(model: PreTrainedModel) -> int:
    """The longest sequence that the model's positions cover."""
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30)


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise InvalidStudentError("student.device is cuda, and there is none: set it to auto or cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _config_end(model: PreTrainedModel) -> int | list[int] | None:
    """Of the config, or of its part about text."""
    configs = (model.config, model.config.get_text_config())
    return next((end for one in configs if (end := getattr(one, "eos_token_id", None)) is not None), None)


def num_rows_of(model: PreTrainedModel) -> int:
    """Of its embedding: ids below have one."""
    embeddings_VD = model.get_input_embeddings().weight
    assert isinstance(embeddings_VD, torch.Tensor)
    return len(embeddings_VD)


def _checked_end_ids(ids: Sequence[int], model: PreTrainedModel) -> tuple[int, ...]:
    """Those of the settings, each once."""
    size = num_rows_of(model)
    if outside := [token for token in ids if not 0 <= token < size]:
        raise InvalidStudentError(f"student.end_token_ids holds {outside[0]}, the student's ids are in [0, {size})")
    return tuple(dict.fromkeys(ids))
