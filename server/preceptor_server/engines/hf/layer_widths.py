"""What one token takes inside a layer, by the kind of the layer, read from a model's config.

Measured on transformers' own PyTorch code (tests/unit/server/engines/test_memory.py). Kernels of other packages, where
they are installed, take less.
"""

# D = hidden size, I = inner size of a feed-forward or of a mixer, H = heads, C = tokens of a chunk

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PretrainedConfig

_LONG_ACTIVATIONS = {"gelu_new", "gelu_fast", "gelu_python", "gelu_accurate", "quick_gelu", "mish", "laplace"}
"""Written as several operations, each with a result of its own."""
_DELTA_CHUNK = 64
"""Tokens of a chunk of linear attention; its configs do not say."""
_KNOWN_LAYERS = {
    *("full_attention", "sliding_attention", "chunked_attention", "attention"),
    *("linear_attention", "mamba", "hybrid", "conv", "recurrent", "moe", "mlp", "sparse", "dense"),
}


def feed_forward_width(text: PretrainedConfig, *, hidden: int) -> int:
    """Numbers of one token while its widest feed-forward is computed:

    3.5 I dense, 5.5 I with an activation of several operations; k * (4.5 I + 2.5 D) for k experts, whose inputs and
    outputs are copied; twice as much for experts with biases, which are gathered for each token. Shared experts' 3.5 I
    come on top. Llama 4 computes every expert for every token.
    """
    inner = _dense_width(text, hidden)
    is_long = getattr(text, "hidden_act", getattr(text, "activation_function", None)) in _LONG_ACTIVATIONS
    dense = int((5.5 if is_long else 3.5) * inner)
    if not num_experts(text):
        return dense
    per_inner = 9.0 if text.model_type == "gpt_oss" else 4.5
    routed = _num_computed_experts(text) * (per_inner * _expert_width(text, inner) + 2.5 * hidden)
    return max(dense, int(routed + 3.5 * _shared_width(text, inner)))


def _dense_width(text: PretrainedConfig, hidden: int) -> int:
    return number(text, "intermediate_size_mlp", "intermediate_size", "ffn_dim", "n_inner") or 4 * hidden


def _num_computed_experts(text: PretrainedConfig) -> int:
    """Of one token."""
    if text.model_type.startswith("llama4"):
        return num_experts(text)
    return number(text, "num_experts_per_tok", "experts_per_token", "moe_topk", "moe_k") or 1


def _expert_width(text: PretrainedConfig, inner: int) -> int:
    return number(text, "moe_intermediate_size", "expert_ffn_hidden_size", "intermediate_size", "ffn_dim") or inner


def _shared_width(text: PretrainedConfig, inner: int) -> int:
    """Of all experts that every token goes through."""
    shared = number(text, "shared_expert_intermediate_size", "moe_shared_expert_intermediate_size")
    num_shared = number(text, "n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
    return shared or number(text, "shared_intermediate_size") or num_shared * _expert_width(text, inner)


def num_experts(text: PretrainedConfig) -> int:
    return number(text, "num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def intermediate(text: PretrainedConfig, *, hidden: int) -> int:
    """Inner numbers of the feed-forward that one token goes through, of all its experts. What only some layers are,
    dense or of experts, all are taken to be."""
    inner = _dense_width(text, hidden)
    if not num_experts(text):
        return inner
    return _num_computed_experts(text) * _expert_width(text, inner) + _shared_width(text, inner)


def has_windows(text: PretrainedConfig) -> bool:
    """Whether attention is bounded in some layers."""
    return bool(number(text, "sliding_window", "attention_chunk_size", "window_size"))


def num_unbounded_layers(text: PretrainedConfig, num_layers: int) -> int:
    """Whose attention sees the whole context. Where the config does not say it layer by layer, all are alike."""
    kinds = getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None)
    if isinstance(kinds, list | tuple):
        return sum(_sees_all(str(kind)) for kind in kinds)
    if not number(text, "num_attention_heads", "n_head"):
        return 0
    is_windowed = has_windows(text) and getattr(text, "use_sliding_window", True) is not False
    return 0 if is_windowed else num_layers


def _sees_all(kind: str) -> bool:
    """As configs name kinds of layers: full_attention, attention, hybrid; not sliding_attention, linear_attention or
    mamba."""
    is_bounded = any(word in kind for word in ("sliding", "chunked", "local", "linear"))
    return not is_bounded and any(word in kind for word in ("attention", "hybrid"))


def has_unknown_attention(text: PretrainedConfig) -> bool:
    """Whether some layer attends in a way that no function here knows, by an index of its own for instance."""
    return not set(getattr(text, "layer_types", None) or ()) <= _KNOWN_LAYERS


def mixer_chunk(text: PretrainedConfig) -> int:
    """Tokens to whose multiple a mixer pads a sequence; 0 where it has none."""
    if _delta_heads(text):
        return _DELTA_CHUNK
    return number(text, "mamba_chunk_size", "chunk_size") if _state_size(text) else 0


def mixer_bytes(text: PretrainedConfig, *, hidden: int, dtype_bytes: int) -> int:
    """Bytes of one token in a layer that is a state space or linear attention, in fp32; 0 where there is none."""
    return max(_state_space_bytes(text, hidden=hidden), _delta_bytes(text, dtype_bytes=dtype_bytes))


def side_bytes(text: PretrainedConfig, *, hidden: int, num_layers: int, dtype_bytes: int) -> int:
    """Bytes of one token that exist beside every layer: inputs for each layer of their own, and streams beside the
    hidden states (Gemma 3n). Both are made from copies of themselves."""
    inputs = number(text, "hidden_size_per_layer_input") * num_layers
    streams = number(text, "altup_num_inputs") * hidden
    return dtype_bytes * (4 * inputs + 4 * streams)


def _state_size(text: PretrainedConfig) -> int:
    return number(text, "mamba_d_state", "ssm_state_size", "state_size")


def _state_space_bytes(text: PretrainedConfig, *, hidden: int) -> int:
    """Mamba: 14 I N + 56 I, of its states of N numbers at every token. Mamba 2, in chunks: 4 H (3.5 C + 8 N + 8 P),
    heads of P numbers."""
    states = _state_size(text)
    if not states:
        return 0
    inner = (number(text, "mamba_expand", "expand") or 2) * hidden
    chunk = mixer_chunk(text)
    if not chunk:
        return 14 * inner * states + 56 * inner
    heads = number(text, "mamba_n_heads", "mamba_num_heads", "n_mamba_heads", "num_heads") or max(1, inner // 64)
    inner = max(number(text, "mamba_d_ssm") or inner, heads * number(text, "mamba_head_dim", "mamba_d_head"))
    return int(4 * heads * (3.5 * chunk + 8 * states) + 32 * inner)


def _delta_heads(text: PretrainedConfig) -> int:
    return number(text, "linear_num_value_heads", "linear_num_heads")


def _delta_bytes(text: PretrainedConfig, *, dtype_bytes: int) -> int:
    """Gated delta rule: 4 H (10 K + 8 V + 4.5 C), of keys of K numbers and values of V. One that decays every number of
    a key by itself (Kimi) has C K of them at every token, 3.5 times."""
    heads = _delta_heads(text)
    if not heads:
        return 0
    key = number(text, "linear_key_head_dim", "linear_head_dim")
    value = number(text, "linear_value_head_dim", "linear_head_dim")
    numbers = 10 * key + 8 * value + 4.5 * _DELTA_CHUNK
    if number(text, "linear_num_heads"):
        numbers += 3.5 * _DELTA_CHUNK * key
    return int(4 * heads * numbers) + 4 * dtype_bytes * heads * (key + value)


def number(config: Any, *names: str) -> int:  # Any: configs of architectures, each with fields of its own
    """The first of these settings that the config has, as a number; the largest where it is one for each layer."""
    for name in names:
        numbers = [one for one in _values(config, name) if isinstance(one, int) and not isinstance(one, bool)]
        if numbers:
            return max(numbers)
    return 0


def _values(config: Any, name: str) -> Sequence[object]:  # Any: as above
    """Of one setting: one, or one for each layer, in either of the two ways in which configs say that."""
    if getattr(config, "is_heterogeneous", False) and name in (config.per_layer_attributes or ()):
        return [getattr(layer, name, None) for layer in config.per_layer_config]
    value = getattr(config, name, None)
    return value if isinstance(value, list | tuple) else [value]
