"""Says in words why a position has no score."""

from __future__ import annotations

from preceptor.wire import PositionStatus

WHY_NO_SCORE = {
    PositionStatus.EXCLUDED: "left out by the request's mask",
    PositionStatus.NON_FINITE: "the teacher's logits were NaN or infinite there",
    PositionStatus.SPECIAL: "a special token without a counterpart at the teacher",
    PositionStatus.MISALIGNED: "the teacher would cut these bytes differently",
    PositionStatus.UNMAPPED: "the teacher's vocabulary has no counterpart of this token",
    PositionStatus.BEYOND_CONTEXT: "beyond the teacher's context",
}
"""For every status but OK."""
