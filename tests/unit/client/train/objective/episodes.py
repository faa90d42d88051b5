"""Episodes of several turns, as a student would have written them, and scored: for the tests of credit and supports."""

# T = tokens of a response, V = vocabulary, K = support size

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from preceptor_client.train.data.examples import Example
from preceptor_client.train.objective.config import ObjectiveConfig
from preceptor_client.train.objective.context import StepContext
from preceptor_client.train.rollout.episode import Episode, Segment
from preceptor_client.train.student.student import Student
from preceptor_client.train.student.view import StudentView
from preceptor_client.train.teacher.config import TeacherConfig
from preceptor_client.train.teacher.scored import ScoredEpisode

from tests.unit.client.train.assembled import scoring_for
from tests.unit.client.train.fake_scorer import FakeScorer, agreement_with

Turn = tuple[str, Sequence[int]]
"""Who wrote: "student", "environment", or "masked" for a student whose tokens are not learned from; and the ids."""
Reward = float | tuple[float | None, ...] | None
PROMPT = (7, 11, 13)


@torch.no_grad()
def logprobs_TV(student: Student, one: Episode, *, temperature: float = 1.0) -> torch.Tensor:
    """Before each token of the response, over the whole vocabulary; in the dtype of the model."""
    ids = torch.tensor([[*one.prompt_ids, *one.response_ids]])
    logits_TV = student.model(ids, use_cache=False).logits[0, len(one.prompt_ids) - 1 : -1]
    return torch.log_softmax(logits_TV / temperature, dim=1)


def episode(
    writer: Student,
    *turns: Turn,
    slot: int = 0,
    sample: int = 0,
    part: int = 0,
    reward: Reward = None,
    prompt_ids: tuple[int, ...] = PROMPT,
    temperature: float = 1.0,
    num_top_ids: int = 0,
    task: str = "",
) -> Episode:
    """With the logprobs that `writer` gives to the student's tokens."""
    response = [token for _, ids in turns for token in ids]
    with torch.no_grad():
        ids = torch.tensor([[*prompt_ids, *response]])
        logits_TV = writer.model(ids, use_cache=False).logits[0, len(prompt_ids) - 1 : -1].float()
    all_TV = torch.log_softmax(logits_TV / temperature, dim=1)
    segments, start = [], 0
    for author, tokens in turns:
        rows_TV = all_TV[start : start + len(tokens)]
        start += len(tokens)
        view = StudentView(
            logprobs_T=rows_TV[torch.arange(len(tokens)), torch.tensor(tokens)].numpy(),
            entropies_T=-(rows_TV.exp() * rows_TV).sum(dim=1).numpy(),
            top_ids_TK=rows_TV.topk(num_top_ids, dim=1).indices.numpy() if num_top_ids else None,
        )
        is_policy = author != "environment"
        segments.append(
            Segment(
                ids=tuple(tokens),
                is_policy=is_policy,
                is_masked=author == "masked",
                student=view if is_policy else None,
            )
        )
    return Episode(
        example=Example(index=0, prompt="a", task=task),
        slot=slot,
        sample=sample,
        part=part,
        prompt_ids=prompt_ids,
        segments=tuple(segments),
        reward=reward,
        finish_reason="stop",
    )


def scored_by(
    scorer: FakeScorer,
    episodes: Sequence[Episode],
    *,
    objective: ObjectiveConfig | None = None,
    top_k: int = 6,
    temperature: float = 1.0,
) -> list[ScoredEpisode]:
    """As a run scores them, all in one batch."""
    scoring = scoring_for(
        scorer,
        teacher=TeacherConfig(address="a:1", top_k=top_k, temperature=temperature),
        objective=objective or ObjectiveConfig(),
        agreement=agreement_with(scorer.teacher),
        vocabulary_size=259,
    )
    scoring.submit(episodes, name="step-1")
    return scoring.gather()


def context(student: Student, *, step: int = 1) -> StepContext:
    return StepContext(step=step, num_steps=10, tokenizer=student.tokenizer, end_token_ids=student.end_token_ids)


def random_turns(seed: int, *lengths: int) -> list[Turn]:
    """Turns of the student with a token of the environment after each but the last."""
    rng = np.random.default_rng(seed)
    turns: list[Turn] = []
    for index, length in enumerate(lengths):
        if index:
            turns.append(("environment", rng.integers(3, 259, 2).tolist()))
        turns.append(("student", rng.integers(3, 259, length).tolist()))
    return turns
