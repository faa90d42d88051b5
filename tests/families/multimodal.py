"""Checkpoints that hold more than a text model: what their parts need beside the standard sizes."""

from __future__ import annotations

from tests.families.overrides import OVERRIDES
from tests.families.ropes import SCALED_QUERIES, THETA
from tests.families.small import Fields

MULTIMODAL: dict[str, Fields] = {
    "dots3_note": {
        "text_config": OVERRIDES["dots3_note_text"],
        "vision_config": {"adapter_in_dim": 48, "adapter_out_dim": 48, "mlp_layer_types": ["dense", "sparse"] * 2},
        "audio_config": {"adapter_input_size": 48, "adapter_out_dim": 48, "downsample_hidden_size": 8},
    },
    "emu3": {
        "vq_config": {"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1, "attn_resolutions": []},
        "vocabulary_map": {"<image>": 271, "<|extra_200|>": 270, "<|visual token 000000|>": 269},
    },
    "gemma3": {"text_config": {"attn_logit_softcapping": None, "final_logit_softcapping": None}},
    "gemma4": {"text_config": OVERRIDES["gemma4_text"]},
    "gemma4_unified": {"text_config": OVERRIDES["gemma4_unified_text"]},
    "llama4": {"text_config": OVERRIDES["llama4_text"]},
    "qwen4_exp": {"text_config": OVERRIDES["qwen4_exp_text"]},
}
"""By model_type of the causal-LM mapping, over what `small` chooses."""

_MROPE: Fields = {"rope_parameters": {"rope_type": "default", "rope_theta": THETA, "mrope_section": [2, 2, 2]}}

WITH_VISION: dict[str, Fields] = {
    "aya_vision": {"text_config": {"logit_scale": 1.0}},
    "glm4v": {"text_config": _MROPE},
    "internvl": {},
    "lfm2_vl": {},
    "llava": {},
    "mistral3": {},
    "mistral4": {"num_key_value_heads": 4, "rope_parameters": SCALED_QUERIES},
    "paligemma": {},
    "qwen2_5_vl": {"text_config": _MROPE},
    "qwen2_vl": {"text_config": _MROPE},
    "qwen3_vl": {"text_config": _MROPE},
    "smolvlm": {},
}
"""By model_type, of families that are not in the causal-LM mapping."""
