from __future__ import annotations

from typing import Any

import pytest
import torch
from preceptor_client.train.student import flat
from preceptor_client.train.student.flat import flat_hidden_states, flat_row
from preceptor_client.train.student.head.matching import head_of
from preceptor_client.train.student.probe import SHORTEST, Probe
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tests.tiny import tiny_llama

# T = tokens of a sequence

_SIZES: dict[str, Any] = {  # Any: as the configs' many other arguments
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "max_position_embeddings": 128,
}


def _ready(model: PreTrainedModel) -> PreTrainedModel:
    model.eval()
    return model


def _can_run_flat(model: PreTrainedModel) -> bool:
    return Probe(model, head=head_of(model), pad_token_id=0, length=SHORTEST).can_run_flat()


def _qwen() -> PreTrainedModel:
    return _ready(Qwen3ForCausalLM(Qwen3Config(**_SIZES)))


def _mistral(*, window: int | None) -> PreTrainedModel:
    return _ready(MistralForCausalLM(MistralConfig(**_SIZES, sliding_window=window)))


def _gemma() -> PreTrainedModel:
    return _ready(Gemma2ForCausalLM(Gemma2Config(**_SIZES)))


@pytest.mark.parametrize(
    ("model", "is_flat"),
    [
        (tiny_llama(), True),
        (_qwen(), True),
        (_mistral(window=None), True),
        (_mistral(window=4), False),
        (_gemma(), False),
    ],
    ids=["Llama", "Qwen3", "Mistral", "Mistral with windows", "Gemma2: soft caps and windows"],
)
def test_models_whose_attention_is_plain_run_flat(model: PreTrainedModel, is_flat: bool) -> None:
    assert _can_run_flat(model) == is_flat
    assert model.config._attn_implementation != flat.IMPLEMENTATION


def test_a_model_that_ignores_the_attention_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then sequences would see each other."""
    model = tiny_llama()
    monkeypatch.setattr(model, "set_attn_implementation", lambda name: None)
    assert not _can_run_flat(model)


def test_the_layout_of_cudas_attention_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernels write [B, tokens, heads, D] and hand over the transposed view."""
    attend = torch.nn.functional.scaled_dot_product_attention

    def as_on_cuda(*states: Any, **options: Any) -> torch.Tensor:  # Any: as torch's own
        return attend(*states, **options).transpose(1, 2).contiguous().transpose(1, 2)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", as_on_cuda)
    assert _can_run_flat(_qwen())


def test_soft_caps_sinks_masks_and_dropout_are_refused() -> None:
    states = torch.zeros(1, 2, 3, 4)
    with pytest.raises(flat.UnsupportedAttentionError):
        flat.flat_attention(torch.nn.Identity(), states, states, states, torch.zeros(1, 1, 3, 3))
    for option in ({"softcap": 30.0}, {"s_aux": torch.zeros(2)}, {"dropout": 0.1}, {"sliding_window": 8}):
        with pytest.raises(flat.UnsupportedAttentionError):
            flat.flat_attention(torch.nn.Identity(), states, states, states, None, **option)


@pytest.mark.parametrize("prefix_length", [0, 1, 17])
@pytest.mark.parametrize("lengths", [(1,), (1, 1, 1), (2, 30, 7, 1), (40, 3)])
@torch.no_grad()
def test_every_token_sees_the_prefix_and_its_own_sequence(prefix_length: int, lengths: tuple[int, ...]) -> None:
    """Grouped heads, many shapes, in float64."""
    model = _qwen()
    model.double()
    generator = torch.Generator().manual_seed(prefix_length)
    prefix, *rests = (
        torch.randint(0, 64, (length,), generator=generator).tolist() for length in (prefix_length, *lengths)
    )
    row = flat_row(prefix, rests, device=torch.device("cpu"))
    states_FD = flat_hidden_states(model, row)
    assert len(states_FD) == prefix_length + sum(lengths)
    for rest, start in zip(rests, row.starts_B, strict=True):
        whole_TD = model.base_model(torch.tensor([prefix + rest]), use_cache=False).last_hidden_state[0]
        torch.testing.assert_close(states_FD[:prefix_length], whole_TD[:prefix_length], atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(states_FD[start : start + len(rest)], whole_TD[prefix_length:], atol=1e-9, rtol=1e-9)


def test_gradients_pass_a_check_in_double_precision() -> None:
    """Of the attention alone: queries, keys and values, grouped heads, a prefix, uneven sequences."""
    row = flat_row([1, 2], [[3], [4, 5, 6], [7, 8]], device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)

    def states(num_heads: int) -> torch.Tensor:
        return torch.randn(1, num_heads, 8, 3, generator=generator, dtype=torch.float64).requires_grad_()

    def attended(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        token = flat._row.set(row)
        try:
            return flat.flat_attention(torch.nn.Identity(), query, key, value, None)[0]
        finally:
            flat._row.reset(token)

    assert torch.autograd.gradcheck(attended, (states(4), states(2), states(2)))
