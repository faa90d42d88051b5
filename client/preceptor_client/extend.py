"""What the author of a part imports: the seams, what they are given, what they return. Each is defined elsewhere.

Imports torch and transformers; the client library itself, `preceptor_client`, needs neither.
"""

from __future__ import annotations

from preceptor_client.objectives import Objective, Positions
from preceptor_client.train.data.examples import Example, ExamplePrompt
from preceptor_client.train.environment.environment import (
    Environment,
    Message,
    Messages,
    Turn,
    prompt_messages,
    without_thoughts,
)
from preceptor_client.train.environment.functions import Function
from preceptor_client.train.environment.tools import ToolEnvironment
from preceptor_client.train.errors import InvalidDataError, InvalidEpisodeError
from preceptor_client.train.evaluation.evaluate import Answer
from preceptor_client.train.evaluation.metric import Metric
from preceptor_client.train.objective.context import StepContext
from preceptor_client.train.objective.credit import CreditRule, TeacherGap, teacher_gap
from preceptor_client.train.objective.extrapolation import CappedWhenSure, StrengthRule
from preceptor_client.train.objective.grpo import Grpo
from preceptor_client.train.objective.weights import FirstTokens, WeightRule
from preceptor_client.train.rollout.engine import OnBad, Policy, RolloutEngine, RolloutRequest, Written
from preceptor_client.train.rollout.episode import Episode, Segment, single_turn
from preceptor_client.train.rollout.hf import StudentEngine
from preceptor_client.train.rollout.judge import Judge
from preceptor_client.train.rollout.rewards import Reward
from preceptor_client.train.run.ema_teacher import EmaTeacher
from preceptor_client.train.run.hooks import Hook, RunState, StepDone
from preceptor_client.train.student.view import StudentView
from preceptor_client.train.teacher.ensemble import ShareRule
from preceptor_client.train.teacher.prompt_source import PromptMaker
from preceptor_client.train.teacher.scored import ScoredEpisode, TeacherScores
from preceptor_client.train.teacher.scorer import Scorer
from preceptor_client.train.teacher.support import Support, SupportRows, SupportRule, student_tokens, teacher_rows
from preceptor_client.types import ChatMessage, ResponseScores

__all__ = [
    "Answer",
    "CappedWhenSure",
    "ChatMessage",
    "CreditRule",
    "EmaTeacher",
    "Environment",
    "Episode",
    "Example",
    "ExamplePrompt",
    "FirstTokens",
    "Function",
    "Grpo",
    "Hook",
    "InvalidDataError",
    "InvalidEpisodeError",
    "Judge",
    "Message",
    "Messages",
    "Metric",
    "Objective",
    "OnBad",
    "Policy",
    "Positions",
    "PromptMaker",
    "ResponseScores",
    "Reward",
    "RolloutEngine",
    "RolloutRequest",
    "RunState",
    "ScoredEpisode",
    "Scorer",
    "Segment",
    "ShareRule",
    "StepContext",
    "StepDone",
    "StrengthRule",
    "StudentEngine",
    "StudentView",
    "Support",
    "SupportRows",
    "SupportRule",
    "TeacherGap",
    "TeacherScores",
    "ToolEnvironment",
    "Turn",
    "WeightRule",
    "Written",
    "prompt_messages",
    "single_turn",
    "student_tokens",
    "teacher_gap",
    "teacher_rows",
    "without_thoughts",
]
