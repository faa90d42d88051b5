"""Says in words which failure mode of on-policy distillation the numbers show, and which setting answers it.

The three modes are those of "Revisiting On-Policy Distillation: Empirical Failure Modes and Simple Fixes". Judges what
`measures` and `breakdown` found; `bounds` says from where on. Measures nothing itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from preceptor_client.train.instruments import bounds
from preceptor_client.train.instruments.bounds import Level
from preceptor_client.train.instruments.measures import FLOOR_LOGPROB, Measures
from preceptor_client.train.record.metrics import MetricRow, MetricValue
from preceptor_client.train.teacher.views import REMEDIES


class Failure(StrEnum):
    """What on-policy distillation fails of."""

    SIGNAL = "1 imbalanced signal"
    PREFIXES = "2 teacher lost on the student's text"
    TOKENS = "3 tokenizers and special tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One thing that was found, or that a failure mode does not show."""

    failure: Failure
    level: Level
    found: str
    change: str = ""
    """The setting that answers it; empty where all is well."""


def verdicts(
    measures: Measures,
    *,
    num_by_status: Mapping[str, int],
    by_position: Sequence[MetricRow],
    can_name_tokens: bool = True,
) -> list[Verdict]:
    """At least one verdict per failure mode, in their order, the worst of each first. `by_position` are the rows of
    `breakdown_rows` by position, in their order; `can_name_tokens` says whether the teacher scores the student's tokens
    by their ids, which objective.support=union needs."""
    union = "objective.support=union" if can_name_tokens else ""
    found = [*_signal(measures, union=union), *_prefixes(measures, by_position), *_tokens(measures, num_by_status)]
    result: list[Verdict] = []
    for failure in Failure:
        findings = [one for one in found if one.failure is failure and one.level is not Level.OK]
        findings.sort(key=lambda one: one.level is not Level.FAIL)
        result += findings or [_without_finding(failure, measures)]
    return result


def _signal(measures: Measures, *, union: str) -> Iterator[Verdict]:
    """`union` is the setting, empty where this teacher does not allow it."""
    failure = Failure.SIGNAL
    if (mass := measures["student_mass"]) is not None:
        yield Verdict(
            failure=failure,
            level=bounds.STUDENT_MASS.level(mass),
            found=f"the student has {mass:.1%} of its probability inside the teacher's support; objective.kind=lsm "
            "leaves the rest where it is",
            change=_either("objective.kind=tail_bucket, which moves it", union),
        )
    if (outside := measures["outside_share"]) is not None:
        yield Verdict(
            failure=failure,
            level=bounds.OUTSIDE_SHARE.level(outside),
            found=f"{outside:.1%} of the student's tokens are not in the teacher's support",
            change=_either(union, "objective.include_sampled=true", "a higher teacher.top_k"),
        )
    if (teacher_mass := measures["teacher_mass"]) is not None:
        yield Verdict(
            failure=failure,
            level=bounds.TEACHER_MASS.level(teacher_mass),
            found=f"the support holds {teacher_mass:.1%} of the teacher's probability",
            change="raise teacher.top_k; or objective.kind=tail_bucket, which counts the rest as one class",
        )
    if (overlap := measures["overlap"]) is not None:
        yield Verdict(
            failure=failure,
            level=bounds.OVERLAP.level(overlap),
            found=f"{overlap:.1%} of the teacher's likeliest tokens are among the student's likeliest",
            change=_either("fine-tune the student on the teacher's answers first", union),
        )
    if (positive := measures["positive_share"]) is not None:
        yield Verdict(
            failure=failure,
            level=bounds.POSITIVE_SHARE.level(positive),
            found=f"the teacher would raise only {positive:.1%} of the student's tokens{_weight(measures)}: a loss "
            "over one token per position learns from few",
            change="keep objective.kind at lsm or another that compares a support; not sampled_token",
        )


def _either(*settings: str) -> str:
    """Those that apply."""
    return "; or ".join(setting for setting in settings if setting)


def _weight(measures: Measures) -> str:
    weight = measures["positive_weight"]
    return "" if weight is None else f" ({weight:.1%} of the signal's weight)"


def _prefixes(measures: Measures, by_position: Sequence[MetricRow]) -> Iterator[Verdict]:
    failure = Failure.PREFIXES
    shorter = "rollout.top_p=0.9, and a lower rollout.max_new_tokens"
    repeated, backing = measures["repeated_share"], measures["repeated_teacher_probability"]
    if repeated is not None and backing is not None:
        level = bounds.REPEATED_SHARE.level(repeated)
        is_backed = backing >= bounds.REPEATS_BACKED_BY_TEACHER
        yield Verdict(
            failure=failure,
            level=Level.FAIL if is_backed and level is Level.WARN else level,
            found=f"{repeated:.1%} of the tokens repeat what the response said before, and the teacher gives them "
            f"{backing:.0%} on average{': it backs the loop' if is_backed else ''}",
            change=shorter,
        )
    if (truncated := measures["truncated_share"]) is not None:
        yield Verdict(
            failure=failure,
            level=bounds.TRUNCATED_SHARE.level(truncated),
            found=f"{truncated:.1%} of the responses were cut before they ended; at {measures['missed_ends']} place(s) "
            "the teacher would have ended and the student went on",
            change="raise rollout.max_new_tokens if they would end soon after; if they ramble, lower it and keep "
            "rollout.top_p=0.9",
        )
    yield from _late_tail(by_position)


def _late_tail(by_position: Sequence[MetricRow]) -> Iterator[Verdict]:
    """The first bucket whose lower tail of gaps lies too far below that of the first that has enough positions."""
    tails = [(str(row["group"]), _number(row["gap_q05"])) for row in by_position if _has_enough(row)]
    for group, tail in tails[1:]:
        first_group, first = tails[0]
        if (level := bounds.LATE_TAIL_DROP.level(first - tail)) is Level.OK:
            continue
        start = group.split("-")[0]
        yield Verdict(
            failure=Failure.PREFIXES,
            level=level,
            found=f"the teacher falls behind as responses go on: the lowest twentieth of log q - log p is "
            f"{tail:.1f} nats at tokens {group}, and {first:.1f} at tokens {first_group}",
            change=f"rollout.max_new_tokens={start}, as far as the task allows, and rollout.top_p=0.9",
        )
        return


def _has_enough(row: MetricRow) -> bool:
    return row["gap_q05"] is not None and _number(row["num_positions"]) >= bounds.MIN_BUCKET_POSITIONS


def _tokens(measures: Measures, num_by_status: Mapping[str, int]) -> Iterator[Verdict]:
    failure = Failure.TOKENS
    yield from _unscored(num_by_status)
    num_positions = measures["num_positions"]
    if num_positions:
        disagreements, without = measures["confident_disagreements"] or 0, measures["no_teacher_probability"] or 0
        yield Verdict(
            failure=failure,
            level=bounds.CONFIDENT_SHARE.level(disagreements / num_positions),
            found=f"of {disagreements} token(s) in {num_positions} the student is sure and the teacher rules them out",
            change="teacher.segmentation=mask leaves out what the teacher would cut otherwise; name markers in "
            "teacher.special_pairs",
        )
        yield Verdict(
            failure=failure,
            level=bounds.NO_PROBABILITY_SHARE.level(without / num_positions),
            found=f"the teacher gives {without} token(s) in {num_positions} no probability at all (below "
            f"{FLOOR_LOGPROB:.0f} nats)",
            change="see which they are with preceptor score; name markers in teacher.special_pairs",
        )
    yield from _ends(measures)


def _ends(measures: Measures) -> Iterator[Verdict]:
    failure = Failure.TOKENS
    pair = "teacher.special_pairs or teacher.end_token_ids, so that the two ends of a response stand for each other"
    if (scored := measures["scored_end_share"]) is not None:
        yield Verdict(
            failure=failure,
            level=bounds.SCORED_END_SHARE.level(scored),
            found=f"the end token has a score in {scored:.1%} of the responses that end by themselves: without one the "
            "student does not learn when to stop",
            change=pair,
        )
    agreement, logprob = measures["end_agreement"], measures["end_teacher_logprob"]
    if agreement is not None and logprob is not None:
        levels = (bounds.END_AGREEMENT.level(agreement), bounds.END_TEACHER_LOGPROB.level(logprob))
        yield Verdict(
            failure=failure,
            level=max(levels, key=list(Level).index),
            found=f"where the student ends, the teacher would end too in {agreement:.1%}, and gives the end token "
            f"{logprob:.1f} nats on average",
            change=pair,
        )


def _unscored(num_by_status: Mapping[str, int]) -> Iterator[Verdict]:
    asked = sum(number for status, number in num_by_status.items() if status != "excluded")
    lost = {status: num_by_status[status] for status in ("misaligned", "special", "unmapped")}
    if not asked:
        return
    worst = max(lost, key=lambda status: lost[status])
    yield Verdict(
        failure=Failure.TOKENS,
        level=bounds.UNSCORED_SHARE.level(sum(lost.values()) / asked),
        found=f"{sum(lost.values()) / asked:.1%} of the positions have no score, for the tokens of the two do not meet "
        f"({', '.join(f'{number} {status}' for status, number in lost.items() if number)})",
        change=REMEDIES[worst],
    )


def _without_finding(failure: Failure, measures: Measures) -> Verdict:
    if not measures["num_positions"]:
        found = "nothing could be measured: no position has a score"
        return Verdict(failure=failure, level=Level.WARN, found=found, change="see the other verdicts and the checks")
    parts = [f"{name} {_text(measures[name])}" for name in _TELLING[failure]]
    return Verdict(failure=failure, level=Level.OK, found=f"no sign of it: {', '.join(parts)}")


_TELLING = {
    Failure.SIGNAL: ("student_mass", "teacher_mass", "outside_share", "overlap", "positive_share"),
    Failure.PREFIXES: ("repeated_share", "truncated_share", "gap_q05"),
    Failure.TOKENS: ("confident_disagreements", "end_agreement", "scored_end_share"),
}
"""What stands for a failure mode where nothing was found."""


def _text(value: float | int | None) -> str:
    if value is None:
        return "not measured"
    return str(value) if isinstance(value, int) else f"{value:.3g}"


def _number(value: MetricValue) -> float:
    assert isinstance(value, int | float)
    return value
