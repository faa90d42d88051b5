"""Loads the model that the settings name, whole or not at all."""

from __future__ import annotations

import logging
import time
from typing import Any

import torch
from preceptor.model_source import InvalidSourceError, check_whole, load_error
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
)

from preceptor_server.engines.config import HfConfig
from preceptor_server.engines.hf.causal_lm import LoadedModel
from preceptor_server.errors import StartupError, said

logger = logging.getLogger(__name__)


def load_model(config: HfConfig) -> LoadedModel:
    """Loads the model that `config` names. Raises StartupError where it does not exist or does not fit."""
    started = time.perf_counter()
    device = _device(config)
    model = _load(config)
    torch.nn.Module.to(model, device)  # transformers' own `to` has no usable type
    loaded = LoadedModel(model.eval().requires_grad_(False), config)
    logger.info(
        "model loaded model=%s revision=%s dtype=%s device=%s seconds=%.1f",
        loaded.name, loaded.revision, config.dtype, device, time.perf_counter() - started,
    )  # fmt: skip
    return loaded


def _load(config: HfConfig) -> PreTrainedModel:
    """With every weight that the architecture has: transformers draws at random what a checkpoint lacks."""
    try:
        # Any: with output_loading_info it is a pair, which transformers' types do not say.
        loaded: Any = _auto_class(config).from_pretrained(
            config.model,
            gguf_file=config.gguf_file,
            dtype=getattr(torch, config.dtype),
            trust_remote_code=config.trust_remote_code,
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        raise StartupError(str(load_error(config.model, error, field="engine.model"))) from error
    except Exception as error:  # an architecture's own code, and the packages that it asks for
        raise StartupError(f"engine.model: {config.model!r} cannot be loaded: {said(error)}") from error
    model, found = loaded
    assert isinstance(model, PreTrainedModel)
    try:
        check_whole(found["missing_keys"], name=config.model, model_class=type(model).__name__, field="engine.model")
    except InvalidSourceError as error:
        raise StartupError(str(error)) from error
    return model


def _auto_class(config: HfConfig) -> type[AutoModelForCausalLM] | type[AutoModelForImageTextToText]:
    """A model of texts, or the one of texts and images whose texts it reads."""
    if config.gguf_file is not None:
        return AutoModelForCausalLM
    found = AutoConfig.from_pretrained(config.model, trust_remote_code=config.trust_remote_code)
    # Any: a class, or None; transformers' types say pairs too.
    reads_images: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING.get(type(found), None)
    # A config may belong to both; the checkpoint says which class wrote it.
    is_named = reads_images is not None and reads_images.__name__ in (found.architectures or [])
    is_causal = type(found) in MODEL_FOR_CAUSAL_LM_MAPPING or "AutoModelForCausalLM" in getattr(found, "auto_map", {})
    if is_named or (reads_images is not None and not is_causal):
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


def _device(config: HfConfig) -> torch.device:
    has_cuda = torch.cuda.is_available()
    if config.device == "cuda" and not has_cuda:
        raise StartupError("engine.device=cuda, but torch finds no CUDA device: set engine.device=cpu")
    return torch.device("cuda" if has_cuda and config.device != "cpu" else "cpu")
