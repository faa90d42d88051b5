from __future__ import annotations

import numpy as np
import pytest
import torch
from preceptor_server.engines.hf.parting import PartedModel, UnknownHeadError
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from tests.tiny import tiny_llama
from tests.unit.server.engines.architectures import ARCHITECTURES, VOCABULARY_SIZE, random_model

# T = tokens, V = vocabulary size

NUM_TOKENS = 23


def some_ids() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(4).integers(0, VOCABULARY_SIZE, NUM_TOKENS))


@torch.no_grad()
def plain_logits(model: PreTrainedModel, ids_T: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=ids_T[None], use_cache=False).logits
    return logits[0]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_body_and_head_together_are_the_model(architecture: str) -> None:
    model = random_model(architecture)
    expected_TV = plain_logits(model, some_ids())
    parted = PartedModel(model, head_dtype=torch.float32)
    hidden_TD = parted.hidden_states(some_ids())
    assert parted.vocabulary_size == VOCABULARY_SIZE
    torch.testing.assert_close(parted.logits(hidden_TD), expected_TV, atol=1e-6, rtol=1e-6)
    # Any rows, in any number and order.
    rows = torch.tensor([5, 0, 5, NUM_TOKENS - 1])
    torch.testing.assert_close(parted.logits(hidden_TD[rows]), expected_TV[rows], atol=1e-5, rtol=1e-5)
    # And the model is as it was.
    assert torch.equal(plain_logits(model, some_ids()), expected_TV)


@torch.no_grad()
def test_the_head_computes_in_its_own_dtype() -> None:
    model = random_model("granite-scaled").bfloat16()
    parted = PartedModel(model, head_dtype=torch.float32)
    hidden_TD = parted.hidden_states(some_ids())
    assert hidden_TD.dtype == torch.bfloat16
    logits_TV = parted.logits(hidden_TD)
    assert logits_TV.dtype == torch.float32
    weight_VD = model.get_output_embeddings().weight
    torch.testing.assert_close(logits_TV, hidden_TD.float() @ weight_VD.float().T / 3.0)
    assert weight_VD.dtype == torch.bfloat16


@torch.no_grad()
def test_a_head_in_another_dtype_takes_over_new_weights_when_told() -> None:
    model = random_model("llama").bfloat16()
    parted = PartedModel(model, head_dtype=torch.float32)
    hidden_TD = parted.hidden_states(some_ids())
    before_TV = parted.logits(hidden_TD)
    model.get_output_embeddings().weight.mul_(2.0)
    assert torch.equal(parted.logits(hidden_TD), before_TV)
    parted.take_over_weights()
    torch.testing.assert_close(parted.logits(hidden_TD), 2 * before_TV)


class _Answering(LlamaForCausalLM):
    """Calls its head as often as it is told."""

    num_calls = 1

    def forward(self, input_ids: torch.Tensor, **_: object) -> CausalLMOutputWithPast:
        hidden = self.model(input_ids=input_ids, use_cache=False).last_hidden_state
        logits = hidden @ self.lm_head.weight.T
        for _call in range(self.num_calls):
            logits = self.lm_head(hidden)
        return CausalLMOutputWithPast(logits=logits)


@pytest.mark.parametrize("num_calls", [0, 2])
def test_a_model_that_does_not_call_its_output_embedding_once_is_refused(num_calls: int) -> None:
    model = type("_Calling", (_Answering,), {"num_calls": num_calls})(tiny_llama().config)
    with pytest.raises(UnknownHeadError, match=f"calls its output embedding {num_calls} times"):
        PartedModel(model, head_dtype=torch.float32)


def test_a_model_without_an_output_embedding_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    monkeypatch.setattr(type(model), "get_output_embeddings", lambda _: None)
    with pytest.raises(UnknownHeadError, match="has no output embedding"):
        PartedModel(model, head_dtype=torch.float32)


class _Twice(LlamaForCausalLM):
    """Its final norm is called a second time, and with other states, after an adapter that its backbone does not hold:
    what stands before the head is called by the model itself, more than once."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.extra = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, input_ids: torch.Tensor, **_: object) -> CausalLMOutputWithPast:
        hidden = self.model(input_ids=input_ids, use_cache=False).last_hidden_state
        hidden = self.extra(self.extra(hidden) + hidden)
        return CausalLMOutputWithPast(logits=torch.tanh(self.lm_head(hidden) / 3.0) * 3.0)


@torch.no_grad()
def test_modules_that_are_called_twice_before_the_head_are_part_of_the_body() -> None:
    torch.manual_seed(0)
    model = _Twice(tiny_llama().config)
    parted = PartedModel(model, head_dtype=torch.float32)
    expected_TV = plain_logits(model, some_ids() % 200)
    for _ in range(2):
        torch.testing.assert_close(parted.logits(parted.hidden_states(some_ids() % 200)), expected_TV)
