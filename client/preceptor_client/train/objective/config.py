"""Settings of the loss: what is minimised, over which tokens, and which of the two fit together. Imports no torch."""

from __future__ import annotations

from typing import Literal, Self

from preceptor.settings import Section
from pydantic import Field, model_validator

from preceptor_client.train.parts import PartConfig

ObjectiveKind = Literal[
    "lsm",
    "tail_bucket",
    "generalised_kl",
    "truncated",
    "full_vocabulary",
    "forward",
    "jsd",
    "stop_gradient",
    "sampled_token",
    "ema_pg",
]
SupportKind = Literal["teacher", "teacher_top_p", "student", "union"]
Outside = Literal["renormalise", "tail_bucket", "truncate"]

_ONLY_FOR: dict[str, tuple[ObjectiveKind, ...]] = {
    "outside": ("forward", "jsd"),
    "jsd_beta": ("jsd",),
    "clip_range": ("sampled_token",),
    "dual_clip": ("sampled_token",),
}
"""Settings that only some kinds read. Another kind with one of them changed would silently ignore it."""
_TAKES_EXTRAPOLATION: tuple[ObjectiveKind, ...] = ("lsm", "sampled_token")


class ObjectiveConfig(Section):
    """The loss. docs/objectives.md gives every formula and its source."""

    kind: ObjectiveKind = "lsm"
    """lsm: reverse KL to the teacher inside the support, both sides renormalised there. tail_bucket: the same with all
    that lies outside as one more class. generalised_kl: reverse KL of masses, sum of p log(p/q) - p + q. truncated:
    sum of p log(p/q) alone (known to collapse). full_vocabulary: reverse KL over all tokens, teacher.top_k is ignored.
    forward, jsd: other divergences. stop_gradient: policy gradient over the support. sampled_token: the baseline, one
    token per position. ema_pg: exact inside the support, sampled outside."""
    support: SupportKind = "teacher"
    """Which tokens are compared: the teacher's top_k; teacher_top_p: the fewest of those that hold support_top_p; the
    student's top_k; the union of both."""
    include_sampled: bool = False
    """Add the token that the student wrote to the support."""
    support_top_p: float = Field(0.98, gt=0, lt=1)
    """For support=teacher_top_p: the teacher's mass that the support must hold, as far as top_k tokens do."""
    outside: Outside = "tail_bucket"
    """For forward and jsd: what becomes of the mass outside the support."""
    jsd_beta: float = Field(0.5, gt=0, lt=1)
    """For jsd: weight of the teacher in the mixture. Near 0 it acts as the forward KL times beta, near 1 as the reverse
    KL times 1 - beta: it vanishes at both ends, so another beta may want another learning rate."""
    clip_range: float = Field(0.2, gt=0, lt=1)
    """For sampled_token: PPO's clip of the ratio to the student that wrote the token."""
    dual_clip: float = Field(3.0, gt=1)
    """For sampled_token: bound of that ratio where the advantage is negative."""
    extrapolation: float = Field(1.0, gt=0, le=4)
    """Lambda of ExOPD: the target is teacher^lambda / start^(lambda - 1), start being the untrained student. 1 is the
    teacher itself; above 1 goes beyond it. For lsm and sampled_token; keeps a second copy of the student in memory."""
    reduction: Literal["position_mean", "sequence_mean"] = "position_mean"
    """position_mean: every scored position of a step counts the same. sequence_mean: every response does."""

    @model_validator(mode="after")
    def _settings_fit_each_other(self) -> Self:
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        for name, kinds in _ONLY_FOR.items():
            if self.kind not in kinds and getattr(self, name) != defaults[name]:
                raise ValueError(
                    f"objective.{name} is for kind={' or '.join(kinds)}, not for {self.kind}: leave it out"
                )
        if self.support != "teacher_top_p" and self.support_top_p != defaults["support_top_p"]:
            raise ValueError("objective.support_top_p is for support=teacher_top_p: set that, or leave it out")
        self._check_support()
        if self.extrapolation != 1.0 and self.kind not in _TAKES_EXTRAPOLATION:
            raise ValueError(
                f"objective.extrapolation={self.extrapolation} needs kind={' or '.join(_TAKES_EXTRAPOLATION)}: the "
                f"extrapolated teacher has no normaliser, which {self.kind} needs"
            )
        return self

    def _check_support(self) -> None:
        if self.kind in ("sampled_token", "full_vocabulary"):
            what = "one token per position" if self.kind == "sampled_token" else "all tokens"
            for name, default in (("support", "teacher"), ("include_sampled", False)):
                if getattr(self, name) != default:
                    raise ValueError(
                        f"objective.{name} does not apply to {self.kind}, which is over {what}: leave it out"
                    )
        if self.kind == "ema_pg" and self.include_sampled:
            raise ValueError(
                "objective.include_sampled does not fit ema_pg: its sampled term is for tokens outside the support, "
                "and there would be none: set it to false"
            )

    @property
    def needs_student_tokens(self) -> bool:
        """Whether the teacher is asked about the student's likeliest tokens, by their ids."""
        return self.support in ("student", "union")

    @property
    def needs_normaliser(self) -> bool:
        """Whether the student's probabilities count, and not only their ratios inside the support."""
        renormalises = self.kind == "lsm" or (self.kind in ("forward", "jsd") and self.outside == "renormalise")
        return not renormalises

    @property
    def min_support(self) -> int:
        """Tokens that a position's support must hold for the loss to say anything there."""
        return 1 if self.needs_normaliser and self.kind != "full_vocabulary" else 2


class CreditConfig(PartConfig):
    """STUB until merge."""
