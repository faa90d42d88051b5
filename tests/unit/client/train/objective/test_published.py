"""Published methods of examples/, against their formulas written out one position at a time."""

from __future__ import annotations

import contextlib
import math
import runpy
from pathlib import Path

import numpy as np
import pytest
from preceptor_client.train.objective.config import CreditConfig
from preceptor_client.train.objective.reduction import Reduction
from preceptor_client.train.objective.shaping import Shaping
from preceptor_client.train.student.student import Student
from preceptor_client.train.teacher.scored import ScoredEpisode

from tests.unit.client.train.fake_scorer import FakeScorer
from tests.unit.client.train.objective.episodes import context, episode, logprobs_TV, random_turns, scored_by

EXAMPLES = Path(__file__).parents[5] / "examples"
REWARDS = (1.0, 0.0, 0.25)


def _shaped(student: Student, scorer: FakeScorer, kind: str) -> list[ScoredEpisode]:
    """Named as in TOML."""
    with contextlib.chdir(EXAMPLES):
        credit = CreditConfig(kind=kind).make()
    episodes = [
        episode(student, *random_turns(index, 3, 2, 4), sample=index, reward=reward)
        for index, reward in enumerate(REWARDS)
    ]
    shaping = Shaping(reduction=Reduction(), credit=credit)
    return shaping.shape(scored_by(scorer, episodes), context(student)).scored


def _gaps(student: Student, scorer: FakeScorer, one: ScoredEpisode) -> list[float]:
    """log q - log p of the student's tokens, from both models' whole distributions."""
    teacher_TV, student_TV = logprobs_TV(scorer.teacher, one.episode), logprobs_TV(student, one.episode)
    tokens = [(t, token) for t, token in enumerate(one.episode.response_ids) if one.episode.is_policy_T[t]]
    return [float(teacher_TV[t, token] - student_TV[t, token]) for t, token in tokens]


def _advantage(reward: float) -> float:
    return (reward - float(np.mean(REWARDS))) / (float(np.std(REWARDS, ddof=1)) + 1e-6)


def test_rlsd_scales_the_advantage_by_the_teachers_clipped_ratio(student: Student, scorer: FakeScorer) -> None:
    clipped = []
    for one, reward in zip(_shaped(student, scorer, "rlsd:Rlsd"), REWARDS, strict=True):
        advantage = _advantage(reward)
        ratios = [math.exp(math.copysign(1, advantage) * gap) for gap in _gaps(student, scorer, one)]
        expected = [advantage * (0.5 + 0.5 * min(max(ratio, 0.8), 1.2)) for ratio in ratios]
        assert one.advantages_N is not None
        assert one.advantages_N.tolist() == pytest.approx(expected, rel=1e-4)
        clipped += [not 0.8 < ratio < 1.2 for ratio in ratios]
    assert sum(clipped) > 0


def test_sod_adds_the_gap_weighed_by_how_the_turns_drift_apart(student: Student, scorer: FakeScorer) -> None:
    weights = []
    for one, reward in zip(_shaped(student, scorer, "sod:Sod"), REWARDS, strict=True):
        gaps, lengths = _gaps(student, scorer, one), (3, 2, 4)
        turns = [gaps[:3], gaps[3:5], gaps[5:]]
        distances = [sum(map(abs, turn)) / len(turn) for turn in turns]
        expected = []
        for k, length in enumerate(lengths):
            product = 1.0
            for u in range(k):
                product *= (distances[u] + 1e-6) / (distances[u + 1] + 1e-6)
            weights.append(min(product, 1.2))
            expected += [_advantage(reward) + weights[-1] * gap for gap in turns[k][:length]]
        assert one.advantages_N is not None
        assert one.advantages_N.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert 1.2 in weights
    assert min(weights) < 1.0


@pytest.mark.parametrize(
    ("margins", "expected"),
    [
        ([0.9, 0.8, 0.9, 0.2, 0.1, 0.2, 0.1], 3),  # a drop
        ([0.1, 0.2, 0.1, 0.8, 0.9, 0.9], 6),  # a rise
        ([0.5, 0.4, 0.6, 0.5, 0.4, 0.6], 6),  # one level
        ([0.9, 0.1, 0.1], 3),  # too short to have two sentences on either side
        ([0.7, 0.7, 0.7, 0.7], 4),
        ([], 0),
    ],
)
def test_prefix_teach_finds_the_drop_and_no_other_change(margins: list[float], expected: int) -> None:
    num_before_drop = runpy.run_path(str(EXAMPLES / "prefix_teach.py"))["num_before_drop"]
    assert num_before_drop(np.array(margins)) == expected
