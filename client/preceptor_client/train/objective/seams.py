"""Registers the built-in objectives, weights, credits and extrapolation rules, each in its seam.

Imports torch, by the objectives. The supports' place is in `teacher.support`.
"""

from __future__ import annotations

from preceptor_client.objectives import Objective
from preceptor_client.train.objective.credit import CreditRule
from preceptor_client.train.objective.extrapolation import StrengthRule
from preceptor_client.train.objective.weights import WeightRule
from preceptor_client.train.parts import Seam

__all__ = ["CREDITS", "EXTRAPOLATIONS", "OBJECTIVES", "WEIGHTS", "CreditRule", "StrengthRule", "WeightRule"]

_OBJECTIVES = "preceptor_client.objectives"
_HERE = "preceptor_client.train.objective"

OBJECTIVES: Seam[Objective] = Seam(
    what="an objective",
    protocol=Objective,
    builtins={
        "lsm": f"{_OBJECTIVES}:Lsm",
        "tail_bucket": f"{_OBJECTIVES}:TailBucket",
        "generalised_kl": f"{_OBJECTIVES}:GeneralisedKl",
        "truncated": f"{_OBJECTIVES}:Truncated",
        "full_vocabulary": f"{_OBJECTIVES}:FullVocabulary",
        "forward": f"{_OBJECTIVES}:Forward",
        "jsd": f"{_OBJECTIVES}:Jsd",
        "stop_gradient": f"{_OBJECTIVES}:StopGradient",
        "sampled_token": f"{_OBJECTIVES}:SampledToken",
        "ema_pg": f"{_OBJECTIVES}:EmaPg",
    },
)
WEIGHTS: Seam[WeightRule] = Seam(
    what="a rule of weights",
    protocol=WeightRule,
    builtins={"first_tokens": f"{_HERE}.weights:FirstTokens"},
)
CREDITS: Seam[CreditRule] = Seam(
    what="a credit",
    protocol=CreditRule,
    builtins={"grpo": f"{_HERE}.grpo:Grpo", "teacher_gap": f"{_HERE}.credit:TeacherGap"},
)
EXTRAPOLATIONS: Seam[StrengthRule] = Seam(
    what="a rule of extrapolation",
    protocol=StrengthRule,
    builtins={"capped_when_sure": f"{_HERE}.extrapolation:CappedWhenSure"},
)
