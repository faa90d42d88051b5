"""One task of a run, put together: its examples, its engine, its rewards, its teachers, its measurement."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from preceptor_client.train.data.bad_examples import BadExamples, Skipping
from preceptor_client.train.data.examples import Example, PromptStream
from preceptor_client.train.errors import InvalidDataError, InvalidEpisodeError
from preceptor_client.train.evaluation.heldout import Heldout
from preceptor_client.train.rollout.engine import Policy, RolloutEngine, RolloutRequest
from preceptor_client.train.rollout.episode import Episode
from preceptor_client.train.rollout.rewards import Rewards
from preceptor_client.train.tasks.task import Task
from preceptor_client.train.teacher.scored import ScoredEpisode
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

    task: Task
    engine: RolloutEngine
    rewards: Rewards | None
    policy: Policy

    def roll_out(
        self, examples: Sequence[Example], *, step: int, failures: Failures, first_slot: int = 0, once: bool = False
    ) -> Iterator[list[Episode]]:
        """Yields batches of episodes as they are done; `once` asks for one response to each prompt. Step 0 is that of
        measurements."""
        config = self.task.rollout
        if once:
            config = config.model_copy(update={"responses_per_prompt": 1})
        request = RolloutRequest(
            examples=examples, first_slot=first_slot, step=step, seed=self.task.seed, config=config, task=self.task.name
        )
        for batch in self.engine.run(request, policy=self.policy, on_bad=failures):
            yield self.rewards.rewarded(batch, on_bad=failures) if self.rewards else batch


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRun:
    """What the loop needs of one task."""

    task: Task
    stream: PromptStream
    roller: Roller
    scoring: Scoring
    heldout: Heldout

    def submit(self, *, first: int, count: int, slot: int, step: int, failures: Failures) -> int:
        """Rolls so many prompts out, from the one with this number on, and asks the teachers about the episodes.
        Returns how many episodes there are."""
        num_episodes = 0
        examples = self.stream.deal(first, count)
        for batch in self.roller.roll_out(examples, step=step, failures=failures, first_slot=slot):
            num_episodes += len(batch)
            self.scoring.submit(batch, name=f"step-{step}")
        return num_episodes

    def gather(self, failures: Failures) -> list[ScoredEpisode]:
        """Waits for the teachers' answers."""
        return self.scoring.gather(on_refused=failures.skipping)

    def failures(self, bad: BadExamples, *, step: int) -> Failures:
        """Empty yet."""
        return Failures(bad.at_step(step, of=self.task.source("train")))
