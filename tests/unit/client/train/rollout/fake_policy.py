"""A student as engines see it, computed densely, one sequence at a time; what it is asked to read is recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from preceptor.json_values import Json
from preceptor_client.train.data.examples import Example, ExamplePrompt
from preceptor_client.train.errors import InvalidDataError, InvalidEpisodeError
from preceptor_client.train.rollout.config import RolloutConfig
from preceptor_client.train.rollout.engine import RolloutEngine, RolloutRequest, Written
from preceptor_client.train.rollout.episode import Episode
from preceptor_client.train.student.student import Student
from preceptor_client.train.student.view import StudentView
from transformers import PreTrainedTokenizerFast

from tests.unit.client.train.tiny import tiny_student


@dataclass
class FakePolicy:
    """Reads and writes with the tiny student. It "writes" the text that is given for a prompt."""

    student: Student = field(default_factory=tiny_student)
    num_top_ids: int = 0
    says: str = "own"
    refuses: str = ""
    """A prompt that it cannot encode."""
    viewed: list[tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        return self.student.tokenizer

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        return self.student.end_token_ids

    @property
    def num_ids(self) -> int:
        return self.student.vocabulary_size

    @property
    def chat_template_kwargs(self) -> Mapping[str, Json]:
        return {}

    @property
    def max_length(self) -> int:
        return self.student.max_length

    def encode(self, prompt: ExamplePrompt, *, example: Example) -> tuple[int, ...]:
        if self.refuses and prompt == self.refuses:
            raise InvalidDataError("cannot be encoded", where=example.name)
        return tuple(self.student.encode_prompt(prompt))

    def decode(self, ids: Sequence[int]) -> str:
        return self.student.decode(ids)

    def write(
        self, prompts: Sequence[Sequence[int]], *, temperature: float, top_p: float, max_new_tokens: int, seed: int
    ) -> list[Written]:
        self.seeds.append(seed)
        ids = (*self.tokenizer(self.says)["input_ids"], self.end_token_ids[0])
        views = self.view(prompts, [ids] * len(prompts))
        return [Written(ids=ids, finish_reason="stop", student=view) for view in views]

    def view(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[StudentView]:
        self.viewed += [(tuple(prompt), tuple(ids)) for prompt, ids in zip(prompts, responses, strict=True)]
        return [self._view(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]

    def logprobs_TV(self, prompt: Sequence[int], response: Sequence[int]) -> torch.Tensor:
        with torch.no_grad():
            logits_TV = self.student.model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
            return torch.log_softmax(logits_TV.double(), dim=1)

    def _view(self, prompt: Sequence[int], response: Sequence[int]) -> StudentView:
        logprobs_TV = self.logprobs_TV(prompt, response)
        tops = logprobs_TV.topk(self.num_top_ids, dim=1).indices.numpy() if self.num_top_ids else None
        return StudentView(
            logprobs_T=logprobs_TV.gather(1, torch.tensor(response)[:, None])[:, 0].numpy().astype(np.float32),
            entropies_T=-(logprobs_TV.exp() * logprobs_TV).sum(1).numpy().astype(np.float32),
            top_ids_TK=tops,
        )


@dataclass
class OnBadList:
    """Takes what is wrong, and lets the rest go on."""

    errors: list[InvalidDataError | InvalidEpisodeError] = field(default_factory=list)

    def __call__(self, error: InvalidDataError | InvalidEpisodeError) -> None:
        self.errors.append(error)

    @property
    def texts(self) -> list[str]:
        return [str(error) for error in self.errors]


def request_of(
    examples: Sequence[Example],
    *,
    step: int = 1,
    seed: int = 0,
    first_slot: int = 0,
    num_responses: int = 1,
    max_new_tokens: int = 64,
    batch_size: int = 4,
) -> RolloutRequest:
    config = RolloutConfig(
        prompts_per_step=len(examples) or 1,
        max_new_tokens=max_new_tokens,
        responses_per_prompt=num_responses,
        batch_size=batch_size,
    )
    return RolloutRequest(examples=examples, first_slot=first_slot, step=step, seed=seed, config=config)


def batches_of(
    engine: RolloutEngine, request: RolloutRequest, policy: FakePolicy, on_bad: OnBadList | None = None
) -> list[list[Episode]]:
    """Fails at what is wrong unless `on_bad` takes it."""
    bad = on_bad or OnBadList()
    batches = list(engine.run(request, policy=policy, on_bad=bad))
    assert on_bad is not None or not bad.errors, bad.texts
    return batches


def texts_of(batches: list[list[Episode]], policy: FakePolicy) -> list[list[str]]:
    return [[policy.decode(episode.response_ids) for episode in batch] for batch in batches]
