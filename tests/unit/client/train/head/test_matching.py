from __future__ import annotations

from typing import Any

import pytest
import torch
from preceptor_client.train.errors import InvalidStudentError
from preceptor_client.train.student.head.matching import head_of
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    PreTrainedModel,
)

from tests.tiny import tiny_llama

_SIZES: dict[str, Any] = {  # Any: as the configs' many other arguments
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.5,
    "pad_token_id": 0,
}


def _gemma() -> PreTrainedModel:
    return Gemma2ForCausalLM(Gemma2Config(**_SIZES, final_logit_softcapping=3.0))


def _cohere() -> PreTrainedModel:
    return CohereForCausalLM(CohereConfig(**_SIZES, logit_scale=0.25))


def _granite() -> PreTrainedModel:
    return GraniteForCausalLM(GraniteConfig(**_SIZES, logits_scaling=8.0))


@pytest.mark.parametrize(
    ("model", "scale", "softcap"),
    [
        (tiny_llama(seed=0), 1.0, None),
        (_gemma().eval(), 1.0, 3.0),
        (_cohere().eval(), 0.25, None),
        (_granite().eval(), 0.125, None),
    ],
    ids=["Llama", "Gemma", "Cohere", "Granite"],
)
def test_what_a_model_does_after_its_head_is_found(model: PreTrainedModel, scale: float, softcap: float | None) -> None:
    head = head_of(model)
    assert (head.scale, head.softcap) == (scale, softcap)
    ids_1T = torch.tensor([[5, 9, 3, 60, 2]])
    with torch.no_grad():
        expected_TV = model(ids_1T).logits[0]
        hidden_TD = model.base_model(ids_1T).last_hidden_state[0]
    torch.testing.assert_close(head.logits(hidden_TD), expected_TV, atol=1e-5, rtol=1e-5)


def test_a_soft_cap_that_no_setting_names_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama(seed=0)
    plain = model.forward

    def capped(*args: object, **options: object) -> object:
        output = plain(*args, **options)
        output.logits = 2.5 * torch.tanh(0.75 * output.logits / 2.5)
        return output

    monkeypatch.setattr(model, "forward", capped)
    head = head_of(model)
    assert head.scale == pytest.approx(0.75, rel=1e-6)
    assert head.softcap == pytest.approx(2.5, rel=1e-6)


def test_a_model_that_does_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama(seed=0)
    plain = model.forward

    def shifted(*args: object, **options: object) -> object:
        output = plain(*args, **options)
        output.logits = output.logits.roll(1, dims=-1)
        return output

    monkeypatch.setattr(model, "forward", shifted)
    with pytest.raises(InvalidStudentError, match="does not reproduce"):
        head_of(model)
