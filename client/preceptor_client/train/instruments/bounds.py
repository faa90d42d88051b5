"""Defines the value of each measure above or below which it is worth a warning, and the source of each bound."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How much a failure mode shows."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Bounds:
    """Where a measure starts to warn and to fail. With `fail` above `warn` large values are bad, else small ones."""

    warn: float
    fail: float

    def level(self, value: float | None) -> Level:
        """A value at a bound is still on its better side; what was not measured is not held against anyone."""
        if value is None:
            return Level.OK
        sign = 1.0 if self.fail > self.warn else -1.0
        if sign * value > sign * self.fail:
            return Level.FAIL
        return Level.WARN if sign * value > sign * self.warn else Level.OK


NEVER_LOW = float("-inf")
NEVER_HIGH = float("inf")
"""For a measure that has other explanations, and alone is never a failure."""

STUDENT_MASS = Bounds(warn=0.9, fail=0.5)
"""lsm sees ratios inside the support and does not set the mass inside it. On a free softmax a student that started at
0.024 stayed at 0.138 with a renormalised loss, and reached the teacher's 0.939 with a tail bucket."""
TEACHER_MASS = Bounds(warn=0.9, fail=0.5)
"""What the top K leaves out is not taught at all."""
OUTSIDE_SHARE = Bounds(warn=0.05, fail=0.2)
"""Where the student's token is outside, its own choice gets no direct answer: one in twenty is noise, one in five is a
part of the text."""
OVERLAP = Bounds(warn=0.72, fail=0.5)
"""In "Rethinking On-Policy Distillation" (2604.13016) good runs went from 0.72 to 0.91, and one at 0.55 needed
fine-tuning first. Measured there with K = 16."""
POSITIVE_SHARE = Bounds(warn=0.25, fail=NEVER_LOW)
"""Two equal models have a half; failure 1 is that a few positive tokens drive all learning. Concerns objectives over
one token only."""

REPEATED_SHARE = Bounds(warn=0.2, fail=0.5)
"""Four-grams of plain prose recur in a few per cent of places, of tables and formulas in up to a fifth."""
TRUNCATED_SHARE = Bounds(warn=0.25, fail=NEVER_HIGH)
"""A short limit alone has this effect, so it is never a failure by itself."""
REPEATS_BACKED_BY_TEACHER = 0.9
"""The paper saw 0.9 to 1.0 in loops (its figure 3): the loss then rewards the loop."""
LATE_TAIL_DROP = Bounds(warn=2.0, fail=5.0)
"""Nats by which the lowest twentieth of the gaps lies deeper than at the start of responses: the paper's evidence is
the spread of late gaps, not their mean (its figure 4). The sizes are ours."""
MIN_BUCKET_POSITIONS = 64
"""Below it the lowest twentieth is two or three tokens."""

CONFIDENT_SHARE = Bounds(warn=0.001, fail=0.01)
"""A mismatched marker has one to three of them per response: 1 % at a few hundred tokens."""
NO_PROBABILITY_SHARE = Bounds(warn=0.0, fail=0.01)
"""Two models with a softmax over one vocabulary have none."""
UNSCORED_SHARE = Bounds(warn=0.1, fail=0.5)
"""Above the half the trainer warns too."""
SCORED_END_SHARE = Bounds(warn=0.999, fail=0.5)
"""An end token without a score is not taught: the student does not learn when to stop."""
END_AGREEMENT = Bounds(warn=0.5, fail=NEVER_LOW)
"""A student may end too early by its own judgement, which training corrects."""
END_TEACHER_LOGPROB = Bounds(warn=-5.0, fail=-10.0)
"""Mean nats. A teacher that means another token by "the end" gave the student's -58.7 (the paper's figure 5); one that
would merely have gone on gives a few."""
