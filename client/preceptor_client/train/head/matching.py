"""Finds what a model does to its logits after the output matrix, by trying what models are known to do."""

# T = tokens, V = vocabulary, D = hidden size

from __future__ import annotations

from collections.abc import Iterator

import torch
from transformers import PreTrainedModel

from preceptor_client.train.errors import InvalidStudentError
from preceptor_client.train.head.head import Head
from preceptor_client.train.head.terms import terms_of

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
"""Largest share of the logits' range by which they may differ from the model's own."""
HALF_TOLERANCE = 2e-2
"""The same where the model rounds its logits to bf16 or fp16."""
_NUM_PROBED = 8


@torch.no_grad()
def head_of(model: PreTrainedModel) -> Head:
    """The head that reproduces the model's logits from its last hidden states. Raises InvalidStudentError where none
    does."""
    module = model.get_output_embeddings()
    if module is None:
        raise InvalidStudentError(f"{type(model).__name__} has no output head, which training needs")
    size = terms_of(module).size
    device = next(model.parameters()).device
    ids_1T = torch.arange(_NUM_PROBED, device=device).unsqueeze(0) % size
    # Typed by transformers as any module's.
    logits_TV = model(ids_1T, use_cache=False).logits[0].float()
    hidden_TD = model.base_model(ids_1T, use_cache=False).last_hidden_state[0]
    errors = {
        head: float((head.logits(hidden_TD).float() - logits_TV).abs().max()) for head in _candidates(model, module)
    }
    best = min(errors, key=lambda head: errors[head])
    if not errors[best] <= TOLERANCE.get(model.dtype, HALF_TOLERANCE) * float(logits_TV.abs().max()):
        raise InvalidStudentError(
            f"{type(model).__name__} changes its logits after the head in a way that training does not reproduce: a "
            "scale and a soft cap are known, and neither fits"
        )
    return best


def _candidates(model: PreTrainedModel, module: torch.nn.Module) -> Iterator[Head]:
    config = model.config.get_text_config()
    softcap = getattr(config, "final_logit_softcapping", None)
    for scale in _scales(config):
        yield Head(module=module, scale=scale, softcap=softcap)
        if softcap is not None:
            yield Head(module=module, scale=scale)


def _scales(config: object) -> Iterator[float]:
    """Cohere and Falcon multiply, Granite divides, HyperCLOVA X multiplies by a setting of Granite's name."""
    yield 1.0
    for name in ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier"):
        value = getattr(config, name, None)
        if isinstance(value, int | float) and value not in (0, 1):
            yield float(value)
            yield 1.0 / float(value)
