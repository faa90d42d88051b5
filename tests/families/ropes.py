"""Every kind of rotary embedding that transformers has, with thresholds that tests can afford to pass."""

from __future__ import annotations

from tests.families.small import Fields

ROPE_THRESHOLD = 28
"""Length beyond which the ropes that depend on length change; tests score on both sides of it."""

THETA = 10_000.0
_STRETCHED: Fields = {"rope_theta": THETA, "original_max_position_embeddings": ROPE_THRESHOLD}

ROPES: dict[str, Fields] = {
    "linear": {"rope_type": "linear", "rope_theta": THETA, "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": THETA, "factor": 8.0},
    "yarn": {**_STRETCHED, "rope_type": "yarn", "factor": 4.0},
    "longrope": {
        **_STRETCHED,
        "rope_type": "longrope",
        "factor": 4.0,
        "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
        "long_factor": [2.0, 3.0, 4.0, 5.0, 6.0, 8.0],
    },
    "llama3": {**_STRETCHED, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "proportional": {"rope_type": "proportional", "rope_theta": THETA, "partial_rotary_factor": 0.5},
}
"""By rope_type, for heads of 12 dimensions. The threshold of `dynamic` is the config's max_position_embeddings."""

SCALED_QUERIES: Fields = {**ROPES["yarn"], "llama_4_scaling_beta": 0.5, "mscale": 1.0, "mscale_all_dim": 1.0}
"""YaRN whose queries grow with every further stretch of the original length."""
