"""Losses, one module per idea: tensors in, one loss per position out. They know nothing of batches or of teachers.

Each module has the pure function, and the class that the settings name with its options.
"""

from __future__ import annotations

from preceptor_client.objectives.ema_pg import EmaPg
from preceptor_client.objectives.forward import Forward
from preceptor_client.objectives.full_vocabulary import FullVocabulary
from preceptor_client.objectives.generalised_kl import GeneralisedKl
from preceptor_client.objectives.jsd import Jsd
from preceptor_client.objectives.lsm import Lsm
from preceptor_client.objectives.objective import Objective
from preceptor_client.objectives.positions import Positions
from preceptor_client.objectives.sampled_token import SampledToken
from preceptor_client.objectives.stop_gradient import StopGradient
from preceptor_client.objectives.tail_bucket import TailBucket
from preceptor_client.objectives.truncated import Truncated

__all__ = [
    "EmaPg",
    "Forward",
    "FullVocabulary",
    "GeneralisedKl",
    "Jsd",
    "Lsm",
    "Objective",
    "Positions",
    "SampledToken",
    "StopGradient",
    "TailBucket",
    "Truncated",
]
