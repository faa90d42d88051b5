"""Defines an episode with the scores of its teachers. Knows nothing of networks or of losses."""

# N = scored positions, K = support size

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from preceptor.wire import TokenArray

from preceptor_client.train.rollout.episode import Episode
from preceptor_client.train.student.sequences import ScoredSequence
from preceptor_client.train.teacher.support import Support, teacher_rows
from preceptor_client.types import ResponseScores

_TEACHERS_OWN = Support(
    ids_NK=np.zeros((0, 0), np.int64),
    teacher_logprobs_NK=np.zeros((0, 0)),
    teacher_tail_N=np.zeros(0),
    is_sampled_inside_N=np.zeros(0, np.bool_),
)
"""Stands for the teacher's top K until they are taken from the scores."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TeacherScores:
    """One teacher's answer about an episode that several teachers scored."""

    name: str
    """In the settings, [teachers.NAME]."""
    teacher: str
    """On its server."""
    scores: ResponseScores
    """At the same positions as `ScoredEpisode.scores`."""
    support: Support
    """The tokens that the loss compares with this teacher's at the same positions."""
    shares_N: npt.NDArray[np.float64]
    """How much it weighs at each position; over the teachers of an episode the shares add up to 1."""
    revision: str = ""
    """Of the weights that scored it."""
    prompt_ids: TokenArray | None = None
    """The prompt as that teacher read it, in its own ids."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoredEpisode:
    """What was written, and what the teacher thinks of it."""

    episode: Episode
    scores: ResponseScores
    """Of the teacher; of several, their mixture. Without the positions whose support is too small for the loss; their
    status stays what it was."""
    num_single_support: int = 0
    """How many those are: renormalised over one token both sides are 1, so there is nothing to learn."""
    revision: str = ""
    """Of the teacher's weights that scored it; of several teachers, theirs with commas between."""
    teacher: str = ""
    """Who scored it, by the name on its server; of several, the first."""
    teacher_prompt_ids: TokenArray | None = None
    """The prompt as that teacher read it, in its own ids."""
    by_teacher: tuple[TeacherScores, ...] = ()
    """Each teacher's own answer, one or several; empty where the run has one teacher, without a name."""
    task: str = ""
    """The name of its task in the settings."""
    support: Support = _TEACHERS_OWN
    """The tokens that the loss compares at the scored positions; the teacher's top K unless others are given."""
    advantages_N: npt.NDArray[np.float64] | None = None
    """The credit of each scored token, of either sign; None where nothing gives credit."""
    strengths_N: npt.NDArray[np.float64] | None = None
    """How far beyond the teacher the target lies at each position; None where it is the same everywhere."""

    def __post_init__(self) -> None:
        if self.support is _TEACHERS_OWN:
            # A frozen dataclass has no other way to complete itself.
            object.__setattr__(self, "support", teacher_rows(self.scores).finish(self.sampled_ids_N))
        num_positions = len(self.scores.positions_N)
        for name in ("advantages_N", "strengths_N"):
            column_N = getattr(self, name)
            assert column_N is None or column_N.shape == (num_positions,), f"{name} {column_N.shape}: {num_positions}"
        assert len(self.support.ids_NK) == num_positions, "a support and scores of other positions"

    @property
    def sequence(self) -> ScoredSequence:
        """What the student is run on. `positions_N` of the scores already excludes prompt, padding, masked and failed
        positions; nothing after it re-derives it."""
        return ScoredSequence(
            prompt_ids=self.episode.prompt_ids,
            response_ids=self.episode.response_ids,
            positions_N=self.scores.positions_N,
        )

    @property
    def sampled_ids_N(self) -> TokenArray:
        """The tokens that the student wrote at the scored positions."""
        return np.asarray(self.episode.response_ids, np.int64)[self.scores.positions_N]

    @property
    def turns_N(self) -> npt.NDArray[np.int64]:
        """The student's turn that each scored token belongs to, from 0."""
        turns_N: npt.NDArray[np.int64] = self.episode.turns_T[self.scores.positions_N]
        return turns_N
