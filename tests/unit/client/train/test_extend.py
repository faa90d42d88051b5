"""What the author of a part imports: pinned, so that a name that goes away is noticed."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from preceptor_client import extend
from preceptor_client.train.environment.environment import ENVIRONMENTS
from preceptor_client.train.evaluation.metric import METRIC
from preceptor_client.train.objective.seams import CREDITS, EXTRAPOLATIONS, OBJECTIVES, WEIGHTS
from preceptor_client.train.parts import Seam
from preceptor_client.train.rollout.engine import ENGINES
from preceptor_client.train.rollout.rewards import REWARD
from preceptor_client.train.run.hooks import HOOK
from preceptor_client.train.teacher.ensemble import SHARES
from preceptor_client.train.teacher.prompt_source import PROMPTS
from preceptor_client.train.teacher.scorer import SCORERS
from preceptor_client.train.teacher.support import SUPPORTS

NAMES = """
Answer CappedWhenSure ChatMessage CreditRule EmaTeacher Environment Episode Example ExamplePrompt FirstTokens Function
Grpo Hook InvalidDataError InvalidEpisodeError Judge Message Messages Metric Objective OnBad Policy Positions
PromptMaker ResponseScores Reward RolloutEngine RolloutRequest RunState ScoredEpisode Scorer Segment ShareRule
StepContext StepDone StrengthRule StudentEngine StudentView Support SupportRows SupportRule TeacherGap TeacherScores
ToolEnvironment Turn WeightRule Written prompt_messages single_turn student_tokens teacher_gap teacher_rows
without_thoughts
"""


SEAMS: list[Seam[Any]] = [  # Any: they are of many protocols
    CREDITS,
    ENGINES,
    ENVIRONMENTS,
    EXTRAPOLATIONS,
    HOOK,
    METRIC,
    OBJECTIVES,
    PROMPTS,
    REWARD,
    SCORERS,
    SHARES,
    SUPPORTS,
    WEIGHTS,
]


def test_names_are_those_that_authors_of_parts_were_promised() -> None:
    assert extend.__all__ == NAMES.split()


@pytest.mark.parametrize("seam", SEAMS, ids=lambda seam: seam.what)
def test_the_protocol_of_every_seam_is_among_them(seam: Seam[Any]) -> None:
    assert getattr(extend, seam.protocol.__name__) is seam.protocol


def test_it_can_be_imported_before_anything_else() -> None:
    subprocess.run([sys.executable, "-c", "from preceptor_client.extend import ScoredEpisode"], check=True)
