"""What is estimated before a forward, against what the forward takes: models of many families, small and random.

Their sizes are in the proportions of real ones, and sequences are short enough that activations, not masks, dominate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from preceptor_server.context_costs import FLAT
from preceptor_server.engines.config import HfConfig
from preceptor_server.engines.hf.causal_lm import LoadedModel
from preceptor_server.engines.hf.forwards import Forwards, PackedForwards, SequentialForwards
from preceptor_server.engines.hf.head import HeadRun
from preceptor_server.engines.hf.planning import MemoryPlan
from preceptor_server.engines.hf.steps import KeptSteps, ResponseSteps
from preceptor_server.types import ScoreGroup
from torch.profiler import ProfilerActivity, profile
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    DeepseekV32Config,
    DeepseekV32ForCausalLM,
    FalconH1Config,
    FalconH1ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3nForCausalLM,
    Gemma3nTextConfig,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    KimiLinearConfig,
    KimiLinearForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

from tests.unit.server.groups import group_of, response_of

MOST_TIMES_TOO_HIGH = 3.0
VOCABULARY_SIZE = 512
MAX_MODEL_LEN = 4096
_ALTERNATING = ["sliding_attention", "full_attention"]
_HYBRID = ["linear_attention", "full_attention"]
_SHAPE: dict[str, Any] = {  # Any: keyword arguments of configs, each with types of its own
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_MODEL_LEN,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LATENT: dict[str, Any] = {
    "num_key_value_heads": 8,
    "kv_lora_rank": 64,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "moe_intermediate_size": 64,
}


def _shape(**changes: Any) -> dict[str, Any]:  # Any: as above
    return {**_SHAPE, **changes}


def _mixture(*, chosen: int, inner: int) -> dict[str, Any]:  # Any: as above
    return _shape(num_experts=16, num_experts_per_tok=chosen, moe_intermediate_size=inner)


def _gemma3() -> PreTrainedModel:
    return Gemma3ForCausalLM(Gemma3TextConfig(head_dim=16, sliding_window=256, layer_types=_ALTERNATING, **_SHAPE))


def _gemma3n(*, num_layers: int, per_layer: int) -> PreTrainedModel:
    config = Gemma3nTextConfig(
        head_dim=16,
        sliding_window=256,
        num_kv_shared_layers=0,
        layer_types=_ALTERNATING * (num_layers // 2),
        vocab_size_per_layer_input=VOCABULARY_SIZE,
        hidden_size_per_layer_input=per_layer,
        laurel_rank=16,
        activation_sparsity_pattern=[0.95] + [0.0] * (num_layers - 1),
        **_shape(num_hidden_layers=num_layers),
    )
    return Gemma3nForCausalLM(config)


def _gpt_oss(*, hidden: int, inner: int) -> PreTrainedModel:
    sizes = _shape(hidden_size=hidden, intermediate_size=inner, num_attention_heads=hidden // 32)
    return GptOssForCausalLM(GptOssConfig(head_dim=16, sliding_window=128, num_local_experts=8, **sizes))


def _llama4() -> PreTrainedModel:
    config = Llama4TextConfig(
        intermediate_size_mlp=384,
        num_local_experts=8,
        num_experts_per_tok=1,
        interleave_moe_layer_step=1,
        head_dim=16,
        attention_chunk_size=256,
        **_shape(intermediate_size=128),
    )
    return Llama4ForCausalLM(config)


def _mamba2(*, chunk: int, states: int, heads: int) -> PreTrainedModel:
    config = Mamba2Config(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=128,
        num_hidden_layers=2,
        state_size=states,
        num_heads=heads,
        head_dim=256 // heads,
        n_groups=1,
        chunk_size=chunk,
    )
    return Mamba2ForCausalLM(config)


def _falcon_h1() -> PreTrainedModel:
    config = FalconH1Config(
        mamba_d_ssm=256,
        mamba_n_heads=8,
        mamba_d_head=32,
        mamba_d_state=64,
        mamba_chunk_size=128,
        **_SHAPE,
    )
    return FalconH1ForCausalLM(config)


def _qwen3_next(*, num_heads: int, head: int) -> PreTrainedModel:
    config = Qwen3NextConfig(
        head_dim=32,
        linear_key_head_dim=head,
        linear_value_head_dim=head,
        linear_num_key_heads=num_heads // 2,
        linear_num_value_heads=num_heads,
        shared_expert_intermediate_size=64,
        layer_types=_HYBRID,
        **_mixture(chosen=4, inner=64),
    )
    return Qwen3NextForCausalLM(config)


def _kimi_linear() -> PreTrainedModel:
    sizes = _shape(**_LATENT, num_experts=8, num_experts_per_tok=2, layer_types=_HYBRID)
    return KimiLinearForCausalLM(KimiLinearConfig(linear_num_heads=2, linear_head_dim=32, **sizes))


def _deepseek_v3() -> PreTrainedModel:
    sizes = _shape(**_LATENT, q_lora_rank=96, n_routed_experts=16, num_experts_per_tok=4, n_group=2, topk_group=1)
    return DeepseekV3ForCausalLM(DeepseekV3Config(n_shared_experts=1, first_k_dense_replace=1, **sizes))


def _gpt2() -> PreTrainedModel:
    config = GPT2Config(vocab_size=VOCABULARY_SIZE, n_embd=128, n_layer=2, n_head=8, n_positions=MAX_MODEL_LEN)
    return GPT2LMHeadModel(config)


def _mamba() -> PreTrainedModel:
    return MambaForCausalLM(
        MambaConfig(vocab_size=VOCABULARY_SIZE, hidden_size=128, state_size=16, num_hidden_layers=2)
    )


FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_SHAPE)),
    "llama-wide": lambda: LlamaForCausalLM(LlamaConfig(**_shape(intermediate_size=1536))),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**_SHAPE)),
    "gpt2": _gpt2,
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(head_dim=16, sliding_window=256, **_SHAPE)),
    "gemma3": _gemma3,
    "gemma3n": lambda: _gemma3n(num_layers=4, per_layer=32),
    "gemma3n-deep": lambda: _gemma3n(num_layers=10, per_layer=64),
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(num_local_experts=8, num_experts_per_tok=2, **_SHAPE)),
    "qwen3-moe": lambda: Qwen3MoeForCausalLM(Qwen3MoeConfig(**_mixture(chosen=4, inner=96))),
    "qwen3-moe-many": lambda: Qwen3MoeForCausalLM(Qwen3MoeConfig(**_mixture(chosen=8, inner=48))),
    "gpt-oss": lambda: _gpt_oss(hidden=128, inner=128),
    "gpt-oss-wide": lambda: _gpt_oss(hidden=64, inner=384),
    "llama4": _llama4,
    "deepseek-v3": _deepseek_v3,
    "mamba": _mamba,
    "mamba2": lambda: _mamba2(chunk=256, states=64, heads=8),
    "mamba2-wide-states": lambda: _mamba2(chunk=64, states=128, heads=4),
    "falcon-h1": _falcon_h1,
    "qwen3-next": lambda: _qwen3_next(num_heads=8, head=32),
    "qwen3-next-wide": lambda: _qwen3_next(num_heads=4, head=128),
    "kimi-linear": _kimi_linear,
}


def loaded(family: str, *, dtype: str = "float32") -> LoadedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = FAMILIES[family]()
    torch.nn.Module.to(model, getattr(torch, dtype))
    config = HfConfig.model_validate({"model": family, "max_model_len": MAX_MODEL_LEN, "dtype": dtype})
    return LoadedModel(model.eval().requires_grad_(False), config)


def forwards_of(model: LoadedModel, packing: str) -> Forwards:
    attention = model.attention_implementation
    return PackedForwards(model) if packing == "packed" else SequentialForwards(model, attention=attention)


def group(*, num_prompt: int, num_responses: int, length: int, top_k: int = 8) -> ScoreGroup:
    rng = np.random.default_rng(0)
    prompt, *responses = (rng.integers(3, VOCABULARY_SIZE, n) for n in [num_prompt, *[length] * num_responses])
    return group_of(prompt, *map(response_of, responses), top_k=top_k)


def peak_bytes(compute: Callable[[], object]) -> int:
    """Most bytes of tensors that exist at once, what operations hold for themselves included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        compute()
    # The public tables sum up by operation and know no peak.
    assert profiled.profiler is not None
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    return int(live.max())


def assert_above_and_below_three_times(estimated: int, real: int) -> None:
    assert real <= estimated <= MOST_TIMES_TOO_HIGH * real, f"{estimated / real:.2f} times {real}"


@torch.inference_mode()
def assert_batch_fits_its_estimate(model: LoadedModel, packing: str, scored: ScoreGroup) -> None:
    """Of the body: the head takes next to nothing, of so small a vocabulary and of one row at a time."""
    forwards = forwards_of(model, packing)
    plan = MemoryPlan(model.shape, max_bytes=1 << 40, rows_per_head_chunk=1)
    forwards.hidden_states([group(num_prompt=64, num_responses=1, length=8)])  # what is made once
    real = peak_bytes(lambda: forwards.hidden_states([scored]))
    assert_above_and_below_three_times(plan.batch_bytes([scored], forwards), real)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("packing", ["packed", "sequential"])
@pytest.mark.parametrize("family", FAMILIES)
def test_estimate_of_a_body_is_above_its_peak_and_below_three_times_that(family: str, packing: str, dtype: str) -> None:
    is_slow = family == "kimi-linear"  # a loop over the tokens of every chunk
    scored = group(num_prompt=64 if is_slow else 200, num_responses=2, length=100 if is_slow else 400)
    assert_batch_fits_its_estimate(loaded(family, dtype=dtype), packing, scored)


@pytest.mark.parametrize("family", ["llama", "qwen3-moe", "deepseek-v3", "gpt-oss", "qwen3-next"])
def test_estimate_holds_where_most_of_a_group_is_its_prompt(family: str) -> None:
    assert_batch_fits_its_estimate(loaded(family), "packed", group(num_prompt=1100, num_responses=2, length=150))


@pytest.mark.parametrize("length", [100, 600])
def test_estimate_holds_for_attention_of_a_kind_that_it_does_not_know(length: int) -> None:
    """DeepSeek V3.2 chooses keys by an index of its own."""
    sizes = _shape(**{**_LATENT, "v_head_dim": 24}, q_lora_rank=96, n_routed_experts=16, n_group=2, topk_group=1)
    config = DeepseekV32Config(num_experts_per_tok=4, index_n_heads=4, index_head_dim=16, index_topk=64, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DeepseekV32ForCausalLM(config)
    unknown = LoadedModel(model.eval().requires_grad_(False), HfConfig(model="unknown"))
    scored = group(num_prompt=200, num_responses=2, length=length)
    assert_batch_fits_its_estimate(unknown, "sequential", scored)


@pytest.mark.parametrize("packing", ["packed", "sequential"])
@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3-moe"])
def test_estimate_holds_for_many_short_responses_whose_rows_are_joined(family: str, packing: str) -> None:
    assert_batch_fits_its_estimate(loaded(family), packing, group(num_prompt=4, num_responses=100, length=12))


@pytest.mark.parametrize("packing", ["packed", "sequential"])
@pytest.mark.parametrize(("rows_per_chunk", "top_k"), [(256, 8), (32, 128)])
def test_estimate_of_body_and_head_holds_for_a_large_vocabulary(packing: str, rows_per_chunk: int, top_k: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**_shape(vocab_size=30_000)))
    config = HfConfig(model="large-vocabulary")
    large = LoadedModel(model.eval().requires_grad_(False), config)
    forwards = forwards_of(large, packing)
    plan = MemoryPlan(large.shape, max_bytes=1 << 40, rows_per_head_chunk=rows_per_chunk)
    scored = group(num_prompt=100, num_responses=2, length=200, top_k=top_k)

    @torch.inference_mode()
    def score() -> None:
        run = HeadRun(large, [scored], rows_per_chunk=rows_per_chunk)
        run.add(forwards.hidden_states([scored]))
        run.finish()

    score()
    assert_above_and_below_three_times(plan.batch_bytes([scored], forwards), peak_bytes(score))


@pytest.mark.parametrize(
    ("way", "num_prompt", "length"),
    [("kept", 200, 60), ("responses", 200, 60), ("sequential", 200, 60), ("sequential", 4, 40)],
)
def test_estimate_of_the_steps_of_a_divided_group_holds(way: str, num_prompt: int, length: int) -> None:
    """The last is of many short forwards in one step, whose rows are more than what a forward takes."""
    model = loaded("llama")
    forwards = forwards_of(model, "sequential" if way == "sequential" else "packed")
    scored = group(num_prompt=num_prompt, num_responses=40, length=length)

    def steps_of(cost: float) -> KeptSteps | ResponseSteps:
        if way == "kept":
            return KeptSteps(model, scored, max_cost=cost)
        return ResponseSteps(forwards, scored, FLAT, max_cost=cost)

    @torch.inference_mode()
    def compute() -> None:
        steps = steps_of(2000)
        for index in range(steps.num_steps):
            steps.hidden_states(index)

    compute()
    plan = MemoryPlan(model.shape, max_bytes=1 << 40, rows_per_head_chunk=64)
    steps = steps_of(2000)
    # Half of the memory is for a forward, the other half for what is kept between the forwards.
    kept = model.shape.kept_bytes_per_token * steps.num_kept_tokens
    assert_above_and_below_three_times(kept + max(map(plan._step_bytes, steps.sizes())), peak_bytes(compute))
