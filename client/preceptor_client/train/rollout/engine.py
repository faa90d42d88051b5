"""The seam for rollout engines: what an engine is asked for, what it may use, what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from preceptor.json_values import Json
from transformers import PreTrainedTokenizerFast

from preceptor_client.errors import PreceptorError
from preceptor_client.train.data.examples import Example, ExamplePrompt
from preceptor_client.train.data.excerpts import excerpt
from preceptor_client.train.environment.environment import MakeEnvironment
from preceptor_client.train.errors import InvalidDataError, InvalidEpisodeError, InvalidPartError
from preceptor_client.train.parts import Seam
from preceptor_client.train.rollout.config import RolloutConfig
from preceptor_client.train.rollout.episode import Episode, FinishReason
from preceptor_client.train.stop import StopRequest
from preceptor_client.train.student.view import StudentView

OnBad = Callable[[InvalidDataError | InvalidEpisodeError], None]
"""Takes what is wrong with one example or with one episode; raises it, or returns for the rest to go on without."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What the student wrote after one prompt."""

    ids: tuple[int, ...]
    """Up to the first end token, which it includes."""
    finish_reason: FinishReason
    """"stop" where it ends with an end token, else "length"."""
    student: StudentView


class Policy(Protocol):
    """The student, as far as an engine needs it."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast: ...

    @property
    def end_token_ids(self) -> tuple[int, ...]: ...

    @property
    def num_ids(self) -> int:
        """Its model knows the ids below; a tokenizer may have more."""
        ...

    @property
    def max_length(self) -> int:
        """Longest sequence that it can read and write, in tokens."""
        ...

    @property
    def chat_template_kwargs(self) -> Mapping[str, Json]:
        """Variables for its chat template, of the run; those of an example beat them."""
        ...

    def encode(self, prompt: ExamplePrompt, *, example: Example) -> tuple[int, ...]:
        """The ids that it reads for a prompt of this example. Raises InvalidDataError, which names the example."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Their text, without special tokens."""
        ...

    def write(
        self, prompts: Sequence[Sequence[int]], *, temperature: float, top_p: float, max_new_tokens: int, seed: int
    ) -> list[Written]:
        """One response per prompt, all in one batch; what is drawn is a function of weights, arguments and seed."""
        ...

    def view(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[StudentView]:
        """What it would have said at the tokens of responses that it did not write."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutRequest:
    """Examples of one task to be rolled out in a step."""

    examples: Sequence[Example]
    first_slot: int = 0
    """The slot of the first example; the others follow."""
    step: int
    """The optimizer step that the episodes are for; 0 for a measurement. The policy has made `step - 1` steps."""
    seed: int
    """Of the run."""
    config: RolloutConfig
    """As the task overrides it."""
    stop: StopRequest = field(default_factory=StopRequest)
    """An engine that waits for something slow gives up when the run is asked to stop: `stop.result_of(future)`."""
    make_environment: MakeEnvironment | None = None
    """Makes what the student talks to, anew for each episode; without it an episode is one response to its prompt."""


class RolloutEngine(Protocol):
    """Rolls examples out. One class, named in TOML: rollout.engine = "package.module:Name"."""

    def run(self, request: RolloutRequest, *, policy: Policy, on_bad: OnBad) -> Iterator[list[Episode]]:
        """Yields the episodes in batches, each as soon as it is done, so that the teacher scores one while the next is
        written. All episodes of a slot are in one batch, side by side. What is wrong with one example or one episode
        goes to `on_bad`, and the rest goes on."""
        ...


def run_engine(
    engine: RolloutEngine, request: RolloutRequest, *, policy: Policy, on_bad: OnBad
) -> Iterator[list[Episode]]:
    """What the engine yields. Raises InvalidPartError, which names rollout.engine, where a user's own fails or yields
    something else."""
    name = type(engine).__name__
    is_own = not type(engine).__module__.startswith("preceptor_client.")
    try:
        for batch in engine.run(request, policy=policy, on_bad=on_bad):
            if not (isinstance(batch, list) and all(isinstance(one, Episode) for one in batch)):
                raise InvalidPartError(f"rollout.engine: {name}.run gave {excerpt(batch)}: yield lists of Episode")
            yield batch
    except PreceptorError:
        raise
    except Exception as error:
        if not is_own:
            raise
        raise InvalidPartError(f"rollout.engine: {name}.run failed: {error!r}") from error


ENGINES: Seam[RolloutEngine] = Seam(
    what="a rollout engine",
    protocol=RolloutEngine,
    builtins={
        "student": "preceptor_client.train.rollout.hf:StudentEngine",
        "jsonl": "preceptor_client.train.rollout.from_file:EpisodesFromFile",
        "openai": "preceptor_client.train.rollout.openai:TeacherWrites",
        "mixed": "preceptor_client.train.rollout.mixed:Mixed",
    },
)
