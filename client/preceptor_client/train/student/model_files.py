"""Loads the student's model and tokenizer from a folder or the hub: whole, or refused in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from preceptor.model_source import InvalidSourceError, Part, check_source, check_whole, load_error
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from preceptor_client.train.errors import InvalidStudentError
from preceptor_client.train.student.config import StudentConfig

_PARTS: tuple[Part, ...] = ("config", "weights", "tokenizer")
_AutoClass = type[AutoModelForCausalLM] | type[AutoModelForImageTextToText]


def load_parts(
    config: StudentConfig, *, folder: Path | None, field: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Those that the settings name, or those in `folder` (a checkpoint) with the settings' dtype. `field` is the
    setting that named them."""
    source, gguf_file = (str(folder), None) if folder else (config.model, config.gguf_file)
    field = "checkpoint" if folder else field
    try:
        check_source(source, field=field, gguf_file=gguf_file, gguf_field="student.gguf_file", needs=_PARTS)
        source = str(Path(source).expanduser()) if Path(source).expanduser().is_dir() else source
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf_file)
        auto_class = AutoModelForCausalLM if gguf_file else _auto_class(source)
        # Any: with output_loading_info it is a pair, which transformers' types do not say.
        loaded: Any = auto_class.from_pretrained(
            source, gguf_file=gguf_file, dtype=getattr(torch, config.dtype), output_loading_info=True
        )
    except InvalidSourceError as error:
        raise InvalidStudentError(str(error)) from error
    except Exception as error:  # an architecture's own code, and the packages that it asks for
        raise InvalidStudentError(str(load_error(source, error, field=field))) from error
    model, found = loaded
    assert isinstance(model, PreTrainedModel)
    try:
        check_whole(found["missing_keys"], name=source, model_class=type(model).__name__, field=field)
    except InvalidSourceError as error:
        raise InvalidStudentError(str(error)) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise InvalidStudentError("the student needs a fast tokenizer (a tokenizer.json): it is identified by it")
    return (_as_unquantised(model) if gguf_file else model), tokenizer


def _auto_class(source: str) -> _AutoClass:
    """For a model of texts; or for one of texts and images, where the checkpoint is one: its text part is trained, and
    all of it is saved."""
    config = AutoConfig.from_pretrained(source)
    named = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(config.model_type)
    is_causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    reads_images = named is not None and (named in (config.architectures or ()) or not is_causal)
    return AutoModelForImageTextToText if reads_images else AutoModelForCausalLM


def _as_unquantised(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a model that does not remember that they came from a GGUF file: only such can be saved."""
    config = model.config
    del config.quantization_config
    # transformers' wrappers hide the signature of `to`.
    fresh: PreTrainedModel = type(model)(config).to(model.dtype)  # type: ignore[arg-type]
    fresh.load_state_dict(model.state_dict())
    fresh.tie_weights()
    fresh.generation_config = model.generation_config
    return fresh
