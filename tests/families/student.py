"""What becomes of a family whose model is trained: what it writes in batches, the states it is trained on, and what it
saves are those of plain forwards of single texts; or it is refused in words."""

# P = prompt tokens, T = tokens of a response, N = scored positions, V = vocabulary

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from preceptor_client.train.errors import InvalidStudentError
from preceptor_client.train.student.config import StudentConfig
from preceptor_client.train.student.generation import Sampling, generate, generate_recorded
from preceptor_client.train.student.hidden import scored_hidden_states
from preceptor_client.train.student.recorder import StudentRecorder
from preceptor_client.train.student.sequences import ScoredSequence
from preceptor_client.train.student.student import Student, load_student
from preceptor_client.train.student.view import StudentView
from transformers import PreTrainedModel

from tests.families.oracle import Floats, Oracle
from tests.families.small import MAX_MODEL_LEN
from tests.families.zoo import Family, build

TOLERANCE_NATS = 1e-4
NUM_NEW = 12
REFUSED = "refused"
_FIRST_ID, _NUM_IDS = 3, 256
_SHARED = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentOutcome:
    """Of one family."""

    family: str
    writing: str
    """How prompts are answered; or REFUSED."""
    training: str = ""
    longest: int = MAX_MODEL_LEN
    """Tokens of the longest text that it may be given; less than the others where it is refused beyond."""
    largest_nats: float = 0.0
    """The largest difference of any logprob or entropy at any position."""
    message: str = ""
    """Why it was refused."""


def student_outcome_of(family: Family, folder: Path) -> StudentOutcome:
    """Builds the family's model in `folder` and trains on it, but for the optimizer.

    Raises AssertionError where a number is wrong, or where a refusal names no setting; and whatever else went wrong.
    """
    build(family, folder)
    try:
        student = load_student(StudentConfig(model=str(folder), device="cpu"))
        longest = _longest(student)
        ways = student.ways.up_to(longest)
    except InvalidStudentError as error:
        return StudentOutcome(family=family.name, writing=REFUSED, message=_naming_a_setting(error))
    oracle = Oracle(_plain_model(family, folder))
    worst = max(_check(student, oracle, batch) for batch in _batches(family.thresholds, longest=longest))
    _check_saved(student, folder / "saved")
    return StudentOutcome(
        family=family.name,
        writing=str(ways.writing),
        training=str(ways.training),
        longest=longest,
        largest_nats=worst,
    )


def _plain_model(family: Family, folder: Path) -> PreTrainedModel:
    """By the class that wrote it, with the attention that transformers takes by itself, as for the student: some
    families' eager attention computes something else (Falcon's with ALiBi)."""
    model: PreTrainedModel = getattr(transformers, family.model_class).from_pretrained(folder, dtype=torch.float32)
    model.eval()
    return model


def _longest(student: Student) -> int:
    context = min(MAX_MODEL_LEN, student.max_length)
    limit = student.ways.constant_up_to(context)
    if limit is None:
        return context
    with pytest.raises(InvalidStudentError, match=rf"more than {limit} tokens.*rollout\.max_new_tokens"):
        student.ways.up_to(limit + 1)
    return limit


def _naming_a_setting(error: InvalidStudentError) -> str:
    assert re.search(r"\b(student|rollout)\.\w+", str(error)), f"names no setting: {error}"
    return str(error)


def _batches(thresholds: Sequence[int], *, longest: int) -> Iterator[list[list[int]]]:
    """Prompts of unlike lengths, several of which end before, at and past each threshold; those that share a beginning;
    one that is alone; two of one length."""
    rng = np.random.default_rng(13)

    def ids(length: int) -> list[int]:
        tokens: list[int] = rng.integers(_FIRST_ID, _NUM_IDS, length).tolist()
        return tokens

    around = [length for t in thresholds for length in (t - 5, t, t + 2, 2 * t + 3)]
    lengths = [length for length in sorted({1, 6, 70, *around}) if 0 < length <= longest - NUM_NEW]
    yield [ids(length) for length in lengths[::-1]]
    stem = ids(_SHARED)
    yield [stem + ids(length) for length in lengths if _SHARED + length <= longest - NUM_NEW]
    yield [ids(5)]
    yield [ids(9), ids(9)]


def _check(student: Student, oracle: Oracle, prompts: Sequence[list[int]]) -> float:
    """What the student writes to them, and the states it would be trained on; returns the largest difference."""
    torch.manual_seed(0)
    responses, views = generate_recorded(
        student,
        prompts,
        max_new_tokens=NUM_NEW,
        sampling=Sampling(temperature=1.0, top_p=0.9),
        recorder=StudentRecorder(temperature=1.0),
    )
    texts = [_Text(oracle, *pair) for pair in zip(prompts, responses, strict=True)]
    recorded = max(text.off_by(text.recorded_T(view)) for text, view in zip(texts, views, strict=True))
    assert recorded <= TOLERANCE_NATS, f"recorded: off by {recorded:.3g}"
    sequences = [
        ScoredSequence(prompt_ids=text.prompt, response_ids=text.response, positions_N=np.arange(len(text.response)))
        for text in texts
    ]
    logits_NV = student.head.logits(scored_hidden_states(student, sequences).detach())
    parts = torch.split(logits_NV.double().log_softmax(dim=1), [len(text.response) for text in texts])
    trained = max(
        text.off_by(np.abs(part.numpy() - text.logprobs_TV).max(axis=1))
        for text, part in zip(texts, parts, strict=True)
    )
    assert trained <= TOLERANCE_NATS, f"trained on: off by {trained:.3g}"
    return max(recorded, trained, _check_greedy(student, oracle, prompts))


def _check_greedy(student: Student, oracle: Oracle, prompts: Sequence[list[int]]) -> float:
    """By how much a token that was written is less likely than the likeliest."""
    greedy = generate(student, prompts, max_new_tokens=NUM_NEW, sampling=None)
    texts = [_Text(oracle, *pair) for pair in zip(prompts, greedy, strict=True)]
    worst = max(text.off_by(text.logprobs_TV.max(axis=1) - text.written_T) for text in texts)
    assert worst <= TOLERANCE_NATS, f"greedy: off by {worst:.3g}"
    return worst


class _Text:
    """A prompt, what was written after it, and what a plain forward says of it."""

    def __init__(self, oracle: Oracle, prompt: list[int], response: list[int]) -> None:
        self.prompt, self.response = prompt, response
        self._oracle = oracle
        self.logprobs_TV = _logprobs(oracle, prompt, response)
        self.written_T = self.logprobs_TV[np.arange(len(response)), response]

    def recorded_T(self, view: StudentView) -> Floats:
        """By how much a record of it is off at each token."""
        entropies_T = -(np.exp(self.logprobs_TV) * self.logprobs_TV).sum(axis=1)
        differences_T: Floats = np.maximum(
            np.abs(self.written_T - view.logprobs_T), np.abs(entropies_T - view.entropies_T)
        )
        return differences_T

    def off_by(self, differences_T: Floats) -> float:
        """The largest of the differences, but for tokens of which plain forwards of longer and shorter texts differ
        too: where an indexer's best tokens are tied, the number of tokens in the forward breaks the tie."""
        far = [int(t) for t in np.flatnonzero(~(differences_T <= TOLERANCE_NATS))]
        return max(
            (float(differences_T[t]) for t in range(len(differences_T)) if t not in far or self._is_settled(t)),
            default=0.0,
        )

    def _is_settled(self, token: int) -> bool:
        """And so are the tokens before it."""
        for before in range(token + 1):
            shorter_TV = _logprobs(self._oracle, self.prompt, self.response[: before + 1])
            if not np.abs(shorter_TV[before] - self.logprobs_TV[before]).max() <= TOLERANCE_NATS:
                return False
        return True


def _logprobs(oracle: Oracle, prompt: Sequence[int], response: Sequence[int]) -> Floats:
    return oracle.logprobs(np.array(prompt), np.array(response), temperature=1.0)


@torch.no_grad()
def _check_saved(student: Student, folder: Path) -> None:
    """What is saved is the model that was trained."""
    student.save(folder)
    saved = load_student(StudentConfig(model=str(folder), device="cpu"))
    assert type(saved.model) is type(student.model)
    ids_1T = torch.arange(_FIRST_ID, _FIRST_ID + 9)[None]
    theirs, ours = (one.model(ids_1T, use_cache=False).logits for one in (saved, student))
    assert torch.equal(theirs, ours), f"saved: off by {(theirs - ours).abs().max():.3g}"
