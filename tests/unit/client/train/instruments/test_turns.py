"""Episodes of several turns and parts: what is measured there is the student's own text."""

# T = tokens of an episode, N = its scored positions

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from preceptor.wire import PositionStatus
from preceptor_client.train.instruments.breakdown import breakdown_rows
from preceptor_client.train.instruments.measures import Measures, measure, reward_measures
from preceptor_client.train.instruments.table import PositionTable, position_table
from preceptor_client.train.record.metrics import MetricRow
from preceptor_client.train.rollout.episode import Episode, Segment
from preceptor_client.train.student.view import StudentView
from preceptor_client.train.teacher.mixture import rows_of
from preceptor_client.train.teacher.scored import ScoredEpisode
from preceptor_client.train.teacher.views import view_responses

from tests.unit.client.train.instruments.steps import END, OTHER_END, Step, Token, random_step, response, step_of

ENDS = (END, OTHER_END)
REPEATS = ("repeated_share", "repeated_teacher_probability")


def table_of(step: Step) -> PositionTable:
    return position_table(*step, end_token_ids=ENDS)


def by(kind: str, step: Step) -> dict[object, MetricRow]:
    return {row["group"]: row for row in breakdown_rows(table_of(step), step=1) if row["by"] == kind}


def own(episode: Episode, start: int, end: int) -> Segment:
    view = episode.student
    student = StudentView(logprobs_T=view.logprobs_T[start:end], entropies_T=view.entropies_T[start:end])
    return Segment(ids=episode.response_ids[start:end], is_policy=True, student=student)


def told(*ids: int) -> Segment:
    """By an environment."""
    return Segment(ids=ids, is_policy=False)


def in_turns(one: ScoredEpisode, *, cuts: Sequence[int], between: Sequence[int], slot: int = 0) -> ScoredEpisode:
    """The same response, with an environment's tokens after so many of its own."""
    ends = [*cuts, len(one.episode.response_ids)]
    segments = [own(one.episode, 0, ends[0])]
    for start, end in zip(cuts, ends[1:], strict=True):
        segments += [told(*between), own(one.episode, start, end)]
    shifts_T = np.searchsorted(np.array(cuts), np.arange(ends[-1]), side="right") * len(between)
    status_T = np.full(ends[-1] + len(cuts) * len(between), PositionStatus.EXCLUDED, np.uint8)
    status_T[np.arange(ends[-1]) + shifts_T] = one.scores.status_T
    positions_N = one.scores.positions_N + shifts_T[one.scores.positions_N]
    return replace(
        one,
        episode=replace(one.episode, segments=tuple(segments), slot=slot),
        scores=replace(one.scores, status_T=status_T, positions_N=positions_N),
    )


def in_parts(step: Step, *, cuts: Sequence[int]) -> Step:
    """Each response in two parts; a cut of 0 leaves it whole."""
    scored, columns = [], []
    for slot, (one, column, cut) in enumerate(zip(*step, cuts, strict=True)):
        whole = one.episode
        for part, (start, end) in enumerate([(0, cut), (cut, len(whole.response_ids))] if cut else [(0, None)]):
            end = len(whole.response_ids) if end is None else end
            is_inside_N = (one.scores.positions_N >= start) & (one.scores.positions_N < end)
            scores = rows_of(one.scores, is_inside_N)
            scores = replace(scores, status_T=scores.status_T[start:end], positions_N=scores.positions_N - start)
            is_last = end == len(whole.response_ids)
            episode = replace(
                whole,
                segments=(own(whole, start, end),),
                slot=slot,
                part=part,
                finish_reason=whole.finish_reason if is_last else "stop",
            )
            scored.append(replace(one, episode=episode, scores=scores, support=one.support.rows(is_inside_N)))
            columns.append(
                replace(
                    column,
                    losses_N=column.losses_N[is_inside_N],
                    masses_N=column.masses_N[is_inside_N],
                    overlaps_N=column.overlaps_N[is_inside_N],
                )
            )
    return scored, columns


def without_repeats(row: MetricRow | Measures) -> dict[str, object]:
    return {name: value for name, value in row.items() if name not in REPEATS}


def cuts_of(step: Step, *, seed: int) -> list[int]:
    draws = random.Random(seed)
    return [draws.randrange(len(one.episode.response_ids)) for one in step[0]]


@pytest.mark.parametrize("seed", range(12))
def test_what_an_environment_writes_between_changes_no_measure(seed: int) -> None:
    """But for repetition, where an n-gram over the cut is none any more."""
    scored, columns = random_step(seed, longest=300)
    cuts = cuts_of((scored, columns), seed=seed)
    turned = [
        in_turns(one, cuts=[cut], between=[4, 5, END]) if cut else one for one, cut in zip(scored, cuts, strict=True)
    ]
    assert any(len(one.episode.segments) > 1 for one in turned) or not any(cuts)
    assert without_repeats(measure(table_of((turned, columns)))) == without_repeats(
        measure(table_of((scored, columns)))
    )
    found, expected = by("position", (turned, columns)), by("position", (scored, columns))
    assert {group: without_repeats(row) for group, row in found.items()} == {
        group: without_repeats(row) for group, row in expected.items()
    }
    assert view_responses([one.episode for one in turned]) == view_responses([one.episode for one in scored])


@pytest.mark.parametrize("seed", range(12))
def test_parts_of_an_episode_are_one_response(seed: int) -> None:
    whole = random_step(seed, longest=300)
    apart = in_parts(whole, cuts=cuts_of(whole, seed=seed))
    assert len(apart[0]) > len(whole[0]) or not any(cuts_of(whole, seed=seed))
    assert without_repeats(measure(table_of(apart))) == without_repeats(measure(table_of(whole)))
    found, expected = by("position", apart), by("position", whole)
    assert {group: without_repeats(row) for group, row in found.items()} == {
        group: without_repeats(row) for group, row in expected.items()
    }
    assert view_responses([one.episode for one in apart[0]]) == view_responses([one.episode for one in whole[0]])


def _tokens(*ids: int, loss: float = 0.5) -> list[Token]:
    return [Token(id=token, loss=loss) for token in ids]


def test_an_environment_may_repeat_itself_and_be_quoted_without_fault() -> None:
    """The student writes 5 6 7 8 once; the environment wrote it before, twice."""
    one, columns = response(*_tokens(9), *_tokens(5, 6, 7, 8))
    turned = in_turns(one, cuts=[1], between=[5, 6, 7, 8, 5, 6, 7, 8])
    assert table_of(([turned], [columns])).is_repeated_N.tolist() == [False] * 5


def test_a_student_that_says_the_same_in_a_later_turn_or_part_repeats_itself() -> None:
    one, columns = response(*_tokens(5, 6, 7, 8), *_tokens(5, 6, 7, 8))
    turned = in_turns(one, cuts=[4], between=[30])
    expected = [False] * 7 + [True]
    assert table_of(([turned], [columns])).is_repeated_N.tolist() == expected
    assert table_of(in_parts(([one], [columns]), cuts=[4])).is_repeated_N.tolist() == expected


def test_turns_have_rows_over_the_episodes_that_reach_them() -> None:
    """Six turns of one token with losses 1 to 6, and an episode of a single turn with loss 3 that was cut."""
    long, long_columns = response(*(Token(id=10 + turn, loss=turn) for turn in range(1, 6)), Token(id=END, loss=6))
    turned = in_turns(long, cuts=[1, 2, 3, 4, 5], between=[30])
    short, short_columns = response(Token(id=9, loss=3), is_cut=True)
    found = by("turn", ([turned, short], [long_columns, short_columns]))
    assert {group: (row["num_positions"], row["loss"], row["truncated_share"]) for group, row in found.items()} == {
        "1": (2, 2.0, 0.5),
        "2": (1, 2.0, 0.0),
        "3-4": (2, 3.5, 0.0),
        "5-8": (2, 5.5, 0.0),
    }


def test_turns_go_on_in_further_parts() -> None:
    one, columns = response(Token(id=5, loss=1), Token(id=6, loss=2))
    found = by("turn", in_parts(([one], [columns]), cuts=[1]))
    assert {group: row["loss"] for group, row in found.items()} == {"1": 1.0, "2": 2.0}


def test_single_turns_have_no_rows_by_turn() -> None:
    assert by("turn", random_step(3)) == {}


def test_the_end_of_an_episode_is_its_last_token() -> None:
    """Every turn ends with an end token; only that of the first has a score."""
    one, columns = response(Token(id=END), Token(id=END, status=PositionStatus.SPECIAL), is_cut=False)
    turned = in_turns(one, cuts=[1], between=[30])
    assert measure(table_of(([turned], [columns])))["scored_end_share"] == 0.0


def test_rewards_are_those_of_whole_episodes() -> None:
    """1 in two parts and none beside: mean 1, and over episodes with rewards 1 and 4 mean 2.5, deviation 1.5."""
    scored, columns = in_parts(
        step_of(response(*_tokens(5, 6)), response(*_tokens(7)), response(*_tokens(8))), cuts=[1, 0, 0]
    )
    first, second, other, unrewarded = scored
    rewarded = [
        replace(first, episode=replace(first.episode, reward=0.25)),
        replace(second, episode=replace(second.episode, reward=(0.75,))),
        replace(other, episode=replace(other.episode, reward=4.0)),
        unrewarded,
    ]
    assert reward_measures(table_of((rewarded, columns))) == {"mean_reward": 2.5, "reward_std": 1.5}
    assert reward_measures(table_of((scored, columns))) == {}
    assert "mean_reward" not in by("position", (scored, columns))["0-15"]
