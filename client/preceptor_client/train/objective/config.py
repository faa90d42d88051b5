"""Settings of the loss: what is minimised, over which tokens, how much each counts, and what fits together.

Imports no torch by itself: the parts that the settings name are imported when they are set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from preceptor.settings import Section
from pydantic import Field, JsonValue, model_validator

from preceptor_client.train.errors import InvalidPartError
from preceptor_client.train.objective.reduction import Reduction, ReductionKind
from preceptor_client.train.parts import PartConfig
from preceptor_client.train.teacher.support import SUPPORTS, SupportRule, WithSampled

if TYPE_CHECKING:
    from preceptor_client.objectives import Objective
    from preceptor_client.train.objective.seams import CreditRule, StrengthRule, WeightRule


class ObjectiveConfig(Section):
    """The loss. docs/objectives.md gives every formula and its source."""

    kind: str = Field("lsm", min_length=1)
    """lsm: reverse KL to the teacher inside the support, both sides renormalised there. tail_bucket: the same with all
    that lies outside as one more class. generalised_kl: reverse KL of masses, sum of p log(p/q) - p + q. truncated:
    sum of p log(p/q) alone (known to collapse). full_vocabulary: reverse KL over all tokens, teacher.top_k is ignored.
    forward, jsd: other divergences. stop_gradient: policy gradient over the support. sampled_token: the baseline, one
    token per position. ema_pg: exact inside the support, sampled outside. Or package.module:Name of a class of your
    own, derived from preceptor_client.objectives.Objective."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """Its options. forward: outside (tail_bucket, renormalise or truncate). jsd: beta, outside. sampled_token:
    clip_range, dual_clip."""
    coefficient: float = Field(1.0, ge=0)
    """Factor of this loss beside the credit's. 0 leaves the credit alone: the loss is then only measured, and positions
    without a support count too."""
    support: str = Field("teacher", min_length=1)
    """Which tokens are compared: the teacher's top_k; teacher_top_p: the fewest of those that hold a mass; the
    student's top_k; the union of both; their intersection. Or package.module:Name of a class of your own."""
    support_options: dict[str, JsonValue] = Field(default_factory=dict)
    """Its options. teacher_top_p: top_p, the teacher's mass that the support must hold, as far as top_k tokens do."""
    include_sampled: bool = False
    """Add the token that the student wrote to the support."""
    extrapolation: float = Field(1.0, gt=0, le=4)
    """Lambda of ExOPD: the target is teacher^lambda / start^(lambda - 1), start being the untrained student. 1 is the
    teacher itself; above 1 goes beyond it. For lsm and sampled_token; keeps a second copy of the student in memory."""
    extrapolation_rule: str = ""
    """Lambda position by position, instead of one everywhere. capped_when_sure: 1 where the teacher is sure. Or
    package.module:Name of a class of your own. Empty takes objective.extrapolation."""
    extrapolation_rule_options: dict[str, JsonValue] = Field(default_factory=dict)
    """Its options. capped_when_sure: strength, max_probability, min_entropy."""
    reduction: ReductionKind = "position_mean"
    """How the positions of a step, with weights w, become one loss. position_mean: sum(w loss) / sum(w).
    sequence_mean: the same, and every response counts the same. position_scaled: sum(w loss) / number of scored
    positions, so that the scale of the weights counts. fixed_scale: sum(w loss) / reduction_scale."""
    reduction_scale: float | None = Field(None, gt=0)
    """For reduction=fixed_scale: a number of positions, such as those of a full step."""

    @model_validator(mode="after")
    def _settings_fit_each_other(self) -> Self:
        if not self.model_fields_set:
            return self  # the defaults fit, and to say so needs no torch
        if (self.reduction == "fixed_scale") != (self.reduction_scale is not None):
            raise ValueError(
                "objective.reduction=fixed_scale and objective.reduction_scale, a number of positions, go together: "
                "set both, or neither"
            )
        objective = self.make()
        self.make_support()
        self._check_support(objective)
        self._check_extrapolation(objective)
        return self

    def _check_support(self, objective: Objective) -> None:
        if not objective.takes_support:
            what = "all tokens" if objective.is_over_whole_vocabulary else "one token per position"
            for name, default in (("support", "teacher"), ("include_sampled", False)):
                if getattr(self, name) != default:
                    raise ValueError(
                        f"objective.{name} does not apply to {self.kind}, which is over {what}: leave it out"
                    )
        if self.include_sampled and not objective.takes_sampled:
            raise ValueError(
                f"objective.include_sampled does not fit {self.kind}: its sampled term is for tokens outside the "
                "support, and there would be none: set it to false"
            )

    def _check_extrapolation(self, objective: Objective) -> None:
        if not self.needs_reference:
            if self.extrapolation_rule_options:
                raise ValueError("objective.extrapolation_rule_options is for objective.extrapolation_rule: set that")
            return
        if self.extrapolation != 1.0 and self.extrapolation_rule:
            raise ValueError(
                "objective.extrapolation is for all positions, objective.extrapolation_rule for each: leave one out"
            )
        if not objective.takes_extrapolation:
            name = "extrapolation_rule" if self.extrapolation_rule else "extrapolation"
            raise ValueError(
                f"objective.{name}={getattr(self, name)} needs kind={' or '.join(_kinds_with_extrapolation())}: the "
                f"extrapolated teacher has no normaliser, which {self.kind} needs"
            )
        self.make_strengths()

    def make(self) -> Objective:
        """The objective, with its options. Raises InvalidPartError, which names the key."""
        from preceptor_client.objectives import Objective
        from preceptor_client.train.objective.seams import OBJECTIVES

        objective = OBJECTIVES.make(self.kind, self.options, key="objective.kind")
        if not isinstance(objective, Objective):
            raise InvalidPartError(
                f"objective.kind={self.kind!r} is not an objective: derive the class from "
                "preceptor_client.objectives.Objective"
            )
        return objective

    def make_support(self) -> SupportRule:
        """The rule of the supports. Raises InvalidPartError, which names the key."""
        rule = SUPPORTS.make(self.support, self.support_options, key="objective.support")
        if not hasattr(rule, "needs_student_tokens"):
            raise InvalidPartError(
                f"objective.support={self.support!r} does not say whether it needs_student_tokens: give the class that "
                "attribute, true or false"
            )
        return WithSampled(rule) if self.include_sampled else rule

    def make_strengths(self) -> StrengthRule | None:
        """The rule of the extrapolation; None where it is the same everywhere."""
        if not self.extrapolation_rule:
            return None
        from preceptor_client.train.objective.seams import EXTRAPOLATIONS

        return EXTRAPOLATIONS.make(
            self.extrapolation_rule, self.extrapolation_rule_options, key="objective.extrapolation_rule"
        )

    def make_reduction(self) -> Reduction:
        return Reduction(kind=self.reduction, scale=self.reduction_scale)

    @property
    def needs_student_tokens(self) -> bool:
        """Whether the teacher is asked about the student's likeliest tokens, by their ids."""
        return self.make_support().needs_student_tokens

    @property
    def needs_reference(self) -> bool:
        """Whether the untrained student is kept beside the one that learns."""
        return self.extrapolation != 1.0 or bool(self.extrapolation_rule)


class CreditConfig(PartConfig):
    """Credit of either sign for what the student wrote, as for its reward: a policy gradient beside the objective."""

    kind: str = Field(min_length=1)
    """grpo: the reward against the other responses to the same prompt. teacher_gap: log q - log p of the token. Or
    package.module:Name of a class of your own."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """Its options. grpo: scale, epsilon, per_segment."""
    coefficient: float = Field(1.0, gt=0)
    """Factor of the credit's loss beside the objective's."""
    weighted: bool = False
    """Whether [weights] multiply the credit's loss too, and not only the objective's."""
    clip_range: float = Field(0.2, gt=0, lt=1)
    """PPO's clip of the ratio to the student that wrote the token."""
    clip_high: float | None = Field(None, gt=0)
    """Its upper side, where that is another than the lower."""
    dual_clip: float | None = Field(None, gt=1)
    """Bound of that ratio where the credit is negative; without it there is none."""

    @model_validator(mode="after")
    def _part_can_be_made(self) -> Self:
        self.make()
        return self

    def make(self) -> CreditRule:
        """The rule. Raises InvalidPartError, which names the key."""
        from preceptor_client.train.objective.seams import CREDITS

        return CREDITS.make(self.kind, self.options, key="credit.kind")


def make_weights(weights: PartConfig | None) -> WeightRule | None:
    """The rule of [weights]; None where every position counts the same. Raises InvalidPartError, which names the
    key."""
    if weights is None:
        return None
    from preceptor_client.train.objective.seams import WEIGHTS

    return WEIGHTS.make(weights.kind, weights.options, key="weights.kind")


def check_terms(objective: ObjectiveConfig, credit: CreditConfig | None) -> None:
    """Raises InvalidPartError, which names the key, where no term of the loss is left."""
    if objective.coefficient == 0 and credit is None:
        raise InvalidPartError(
            "objective.coefficient=0 without [credit] leaves nothing to learn from: set credit.kind, or raise it"
        )


def _kinds_with_extrapolation() -> list[str]:
    from preceptor_client.train.objective.seams import OBJECTIVES

    return [name for name in OBJECTIVES.builtins if OBJECTIVES.make(name, key="objective.kind").takes_extrapolation]
