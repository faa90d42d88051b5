"""What ModelShape says of a model's context costs, beside the floating point operations that torch counts."""

from __future__ import annotations

import math

import pytest
import torch
from preceptor_server.context_costs import FLAT
from preceptor_server.engines.hf.memory import ModelShape, shape_of
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

SHORT, LONG = 64, 512
SIZES = {
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 40,
}


def config_of(model_type: str, **more: object) -> PretrainedConfig:
    config = AutoConfig.for_model(model_type, **SIZES | more)
    assert isinstance(config, PretrainedConfig)
    return config


def shape_for(config: PretrainedConfig) -> ModelShape:
    return shape_of(
        config, vocabulary=40, dtype=torch.float32, head_dtype=torch.float32, device=torch.device("cpu")
    )  # fmt: skip


def flops(model: PreTrainedModel, num_tokens: int) -> float:
    """Of the body, its attention in full (torch counts no mask)."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.zeros(1, num_tokens, dtype=torch.long), use_cache=False, logits_to_keep=1)
    return float(counter.get_total_flops())


@pytest.mark.parametrize(
    ("model_type", "more"),
    [
        ("llama", {}),
        ("qwen2", {"num_attention_heads": 3, "num_key_value_heads": 3}),
        ("qwen3", {"head_dim": 64}),
        ("mistral", {"sliding_window": None}),
        ("phi3", {"sliding_window": None, "pad_token_id": 0}),
        (
            "qwen3_moe",
            {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "sliding_window": None},
        ),
    ],
)
def test_the_horizon_is_where_attention_costs_as_much_as_all_else(model_type: str, more: dict[str, object]) -> None:
    config = config_of(model_type, **more)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # torch counts no grouped products
    # F(T) = a T + b T^2 of two lengths; a token's attention to one token of context costs b.
    per_token = [flops(model, length) / length for length in (SHORT, LONG)]
    slope = (per_token[1] - per_token[0]) / (LONG - SHORT)
    measured = (per_token[0] - slope * SHORT) / slope
    assert shape_for(config).context_costs.horizon == pytest.approx(measured, rel=0.35)


def test_layers_that_see_a_window_or_a_state_cost_the_same_everywhere() -> None:
    full = shape_for(config_of("qwen2")).context_costs
    half = shape_for(
        config_of("qwen2", layer_types=["full_attention", "sliding_attention"] * 2, use_sliding_window=True,
                  sliding_window=8)
    ).context_costs  # fmt: skip
    assert math.isfinite(full.horizon)
    assert half.horizon == pytest.approx(2 * full.horizon)
    assert shape_for(config_of("mistral", sliding_window=8)).context_costs == FLAT
    assert shape_for(AutoConfig.for_model("mamba", hidden_size=96, num_hidden_layers=2)).context_costs == FLAT
