"""The built-in rollout engine: the student itself writes, batch by batch. Knows nothing of scoring."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from preceptor_client.train.data.examples import Example
from preceptor_client.train.errors import InvalidDataError, InvalidEpisodeError
from preceptor_client.train.rollout.config import RolloutConfig
from preceptor_client.train.rollout.draws import draw_seed, slots_of_batches
from preceptor_client.train.rollout.engine import OnBad, Policy, RolloutRequest
from preceptor_client.train.rollout.episode import Episode, single_turn
from preceptor_client.train.rollout.policy import HfPolicy
from preceptor_client.train.rollout.turns import roll_out_turns
from preceptor_client.train.student.student import Student


class StudentEngine:
    """A `RolloutEngine` that lets the policy write. What it draws is a function of the policy, the seed, step and
    batch."""

    def run(self, request: RolloutRequest, *, policy: Policy, on_bad: OnBad) -> Iterator[list[Episode]]:
        """Yields the episodes in batches of at most `rollout.batch_size`: one response to each prompt, or, where the
        request has an environment, a conversation with it."""
        roll_out = roll_out_responses if request.make_environment is None else roll_out_turns
        return roll_out(request, policy=policy, on_bad=on_bad)


def roll_out_responses(request: RolloutRequest, *, policy: Policy, on_bad: OnBad) -> Iterator[list[Episode]]:
    """One response to each prompt, `rollout.responses_per_prompt` times."""
    kept = list(_encoded(request.examples, policy=policy, on_bad=on_bad))
    config = request.config
    for batch, places in enumerate(slots_of_batches(len(kept), config=config)):
        responses = policy.write(
            [kept[place][1] for place in places],
            temperature=config.temperature,
            top_p=config.top_p,
            max_new_tokens=config.max_new_tokens,
            seed=draw_seed(request.seed, step=request.step, batch=batch, first_slot=request.first_slot),
        )
        yield [
            single_turn(
                example=kept[place][0],
                slot=request.first_slot + place,
                sample=number % config.responses_per_prompt,
                prompt_ids=kept[place][1],
                response_ids=written.ids,
                finish_reason=written.finish_reason,
                student=written.student,
                policy_version=max(0, request.step - 1),
            )
            for number, (place, written) in enumerate(zip(places, responses, strict=True))
        ]


def _encoded(
    examples: Sequence[Example], *, policy: Policy, on_bad: OnBad
) -> Iterator[tuple[Example, tuple[int, ...]]]:
    for example in examples:
        try:
            yield example, policy.encode(example.prompt, example=example)
        except InvalidDataError as error:
            on_bad(error)


class HfRollouts:
    """The built-in engine beside the student of a run, for those who need no other."""

    def __init__(
        self,
        student: Student,
        *,
        config: RolloutConfig,
        seed: int,
        loss_temperature: float = 1.0,
        num_top_ids: int = 0,
    ) -> None:
        """As `HfPolicy`, and `RolloutRequest`."""
        self._policy = HfPolicy(student, loss_temperature=loss_temperature, num_top_ids=num_top_ids)
        self._config = config
        self._seed = seed

    def generate(
        self, examples: Sequence[Example], *, step: int, on_bad: Callable[[InvalidDataError], None] | None = None
    ) -> Iterator[list[Episode]]:
        """Yields the rollouts of a step in batches of at most `rollout.batch_size`; all responses to one prompt are in
        one batch. An example whose prompt cannot be encoded is given to `on_bad` and left out; without it,
        InvalidDataError is raised."""

        def tell(error: InvalidDataError | InvalidEpisodeError) -> None:
            if on_bad is None or isinstance(error, InvalidEpisodeError):
                raise error
            on_bad(error)

        request = RolloutRequest(examples=examples, step=step, seed=self._seed, config=self._config)
        return StudentEngine().run(request, policy=self._policy, on_bad=tell)
