"""One task of a run, put together: its examples, its engine, its rewards, its teachers, its measurement."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from preceptor_client.train.data.bad_examples import BadExamples, Skipping
from preceptor_client.train.data.examples import Example, PromptStream
from preceptor_client.train.environment.environment import MakeEnvironment
from preceptor_client.train.errors import InvalidDataError, InvalidEpisodeError
from preceptor_client.train.evaluation.heldout import Heldout
from preceptor_client.train.rollout.config import RolloutConfig
from preceptor_client.train.rollout.engine import OnBad, Policy, RolloutEngine, RolloutRequest, run_engine
from preceptor_client.train.rollout.episode import Episode
from preceptor_client.train.rollout.rewards import WeightedReward, rewarded
from preceptor_client.train.stop import StopRequest
from preceptor_client.train.tasks.task import Task
from preceptor_client.train.teacher.scoring import Scoring


class Failures:
    """What goes wrong in one step with single examples and episodes: the rest goes on without them."""

    def __init__(self, skipping: Skipping) -> None:
        """`skipping` decides about bad examples."""
        self.skipping = skipping
        self.episodes: list[InvalidEpisodeError] = []

    def __call__(self, error: InvalidDataError | InvalidEpisodeError) -> None:
        """Raises where the run stops at it."""
        if isinstance(error, InvalidEpisodeError):
            self.episodes.append(error)
        else:
            self.skipping(error)


@dataclass(frozen=True, slots=True, kw_only=True)
class Roller:
    """Rolls examples of one task out and rewards the episodes."""

    engine: RolloutEngine
    config: RolloutConfig
    seed: int
    policy: Policy
    make_environment: MakeEnvironment | None = None
    rewards: tuple[WeightedReward, ...] = ()
    stop: StopRequest

    def roll_out(
        self, examples: Sequence[Example], *, step: int, on_bad: OnBad, first_slot: int = 0
    ) -> Iterator[list[Episode]]:
        """Yields batches of episodes as they are done. Step 0 is that of measurements."""
        request = RolloutRequest(
            examples=examples,
            first_slot=first_slot,
            step=step,
            seed=self.seed,
            config=self.config,
            make_environment=self.make_environment,
            stop=self.stop,
        )
        for batch in run_engine(self.engine, request, policy=self.policy, on_bad=on_bad):
            yield rewarded(batch, rewards=self.rewards, decode=self.policy.decode, on_bad=on_bad, stop=self.stop)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRun:
    """What the loop needs of one task."""

    task: Task
    stream: PromptStream
    roller: Roller
    scoring: Scoring
    heldout: Heldout

    def failures(self, bad: BadExamples, *, step: int) -> Failures:
        """Empty yet."""
        return Failures(bad.at_step(step, of=self.task.source("train")))
