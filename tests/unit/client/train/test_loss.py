"""The loss as a run computes it, against whole distributions of both models, one position at a time in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from preceptor_client.train.data.examples import Example
from preceptor_client.train.learner.loss import Loss
from preceptor_client.train.objective.config import ObjectiveConfig
from preceptor_client.train.objective.reference import Reference
from preceptor_client.train.rollout.config import RolloutConfig
from preceptor_client.train.rollout.hf import HfRollouts
from preceptor_client.train.student import module as student_module
from preceptor_client.train.student.student import Student
from preceptor_client.train.teacher.config import TeacherConfig
from preceptor_client.train.teacher.scored import ScoredEpisode

from tests.unit.client.train.assembled import scoring_for
from tests.unit.client.train.fake_scorer import FakeScorer, agreement_with
from tests.unit.client.train.tiny import tiny_student

# V = vocabulary, T = tokens of a response

TOP_K, TEMPERATURE, VOCABULARY_SIZE = 6, 0.7, 259
Distribution = np.ndarray[tuple[int], np.dtype[np.float64]]


def _scored(
    student: Student, scorer: FakeScorer, config: ObjectiveConfig, *, top_k: int = TOP_K
) -> list[ScoredEpisode]:
    rollout = RolloutConfig(prompts_per_step=3, max_new_tokens=5, batch_size=8, top_p=1.0)
    scoring = scoring_for(
        scorer,
        teacher=TeacherConfig(address="a:1", top_k=top_k, temperature=TEMPERATURE),
        objective=config,
        agreement=agreement_with(scorer.teacher),
        vocabulary_size=VOCABULARY_SIZE,
    )
    rollouts = HfRollouts(
        student,
        config=rollout,
        seed=0,
        loss_temperature=TEMPERATURE,
        num_top_ids=top_k if config.needs_student_tokens else 0,
    )
    examples = [Example(index=index, prompt="ab" * (index + 1)) for index in range(3)]
    for batch in rollouts.generate(examples, step=1):
        scoring.submit(batch, name="step-1")
    return scoring.gather()


@torch.no_grad()
def _positions(*models: Student, scored: Sequence[ScoredEpisode]) -> Iterator[tuple[int, list[Distribution]]]:
    """For each position the token that was written, and every model's logprobs over the whole vocabulary."""
    for one in scored:
        prompt, response = one.episode.prompt_ids, one.episode.response_ids
        ids = torch.tensor([[*prompt, *response]])
        logprobs = [
            torch.log_softmax(model.model(ids).logits[0, len(prompt) - 1 : -1].double() / TEMPERATURE, dim=1).numpy()
            for model in models
        ]
        for position, token in enumerate(response):
            yield token, [of_model_TV[position] for of_model_TV in logprobs]


def _top(logprobs_V: Distribution, size: int = TOP_K) -> set[int]:
    return set(np.argsort(-logprobs_V, kind="stable")[:size].tolist())


def _kl(p: Sequence[float], q: Sequence[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def _lsm(p: list[float], q: list[float]) -> float:
    return _kl([a / sum(p) for a in p], [b / sum(q) for b in q])


def _tail_bucket(p: list[float], q: list[float]) -> float:
    return _kl([*p, 1 - sum(p)], [*q, 1 - sum(q)])


def _generalised_kl(p: list[float], q: list[float]) -> float:
    return _kl(p, q) - sum(p) + sum(q)


def _forward(p: list[float], q: list[float]) -> float:
    return _tail_bucket(q, p)


FORMULAS: dict[str, Callable[[list[float], list[float]], float]] = {
    "lsm": _lsm,
    "tail_bucket": _tail_bucket,
    "generalised_kl": _generalised_kl,
    "truncated": _kl,
    "forward": _forward,
}
SUPPORTS: dict[str, Callable[[Distribution, Distribution], set[int]]] = {
    "teacher": lambda p_V, q_V: _top(q_V),
    "student": lambda p_V, q_V: _top(p_V),
    "union": lambda p_V, q_V: _top(p_V) | _top(q_V),
}


@pytest.mark.parametrize("include_sampled", [False, True])
@pytest.mark.parametrize("support", SUPPORTS)
@pytest.mark.parametrize("kind", FORMULAS)
def test_every_support_and_formula_equals_whole_distributions(
    student: Student, scorer: FakeScorer, kind: str, support: str, include_sampled: bool
) -> None:
    config = ObjectiveConfig.model_validate({"kind": kind, "support": support, "include_sampled": include_sampled})
    scored = _scored(student, scorer, config)
    expected: list[float] = []
    for token, (log_p_V, log_q_V) in _positions(student, scorer.teacher, scored=scored):
        members = SUPPORTS[support](log_p_V, log_q_V) | ({token} if include_sampled else set())
        ids = sorted(members)
        expected.append(FORMULAS[kind](np.exp(log_p_V[ids]).tolist(), np.exp(log_q_V[ids]).tolist()))
    losses_N = Loss(student, config=config, temperature=TEMPERATURE).of(scored).losses_N
    # fp32 through two layers, and differences of logs.
    assert losses_N.tolist() == pytest.approx(expected, rel=2e-3, abs=2e-5)


def test_full_vocabulary_asks_for_all_tokens_and_is_the_whole_divergence(student: Student, scorer: FakeScorer) -> None:
    config = ObjectiveConfig(kind="full_vocabulary")
    scored = _scored(student, scorer, config)
    assert all(call.options["top_k"] == VOCABULARY_SIZE for call in scorer.calls)
    expected = [
        _kl(np.exp(log_p_V).tolist(), np.exp(log_q_V).tolist())
        for _, (log_p_V, log_q_V) in _positions(student, scorer.teacher, scored=scored)
    ]
    losses_N = Loss(student, config=config, temperature=TEMPERATURE).of(scored).losses_N
    assert losses_N.tolist() == pytest.approx(expected, rel=1e-3, abs=2e-5)


def test_sampled_token_compares_the_written_token_alone(student: Student, scorer: FakeScorer) -> None:
    """On policy the ratio is 1, and the loss log p - log q; what the student said then is what it says now."""
    config = ObjectiveConfig(kind="sampled_token")
    scored = _scored(student, scorer, config)
    expected = [
        log_p_V[token] - log_q_V[token]
        for token, (log_p_V, log_q_V) in _positions(student, scorer.teacher, scored=scored)
    ]
    losses_N = Loss(student, config=config, temperature=TEMPERATURE).of(scored).losses_N
    assert losses_N.tolist() == pytest.approx(expected, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("strength", [0.5, 1.25])
def test_extrapolation_moves_the_target_away_from_the_start(
    student: Student, scorer: FakeScorer, strength: float
) -> None:
    start = tiny_student(seed=5)
    config = ObjectiveConfig(extrapolation=strength)
    scored = _scored(student, scorer, config)
    expected: list[float] = []
    for _, (log_p_V, log_q_V, log_r_V) in _positions(student, scorer.teacher, start, scored=scored):
        ids = sorted(_top(log_q_V))
        target = np.exp(strength * log_q_V[ids] - (strength - 1) * log_r_V[ids])
        expected.append(_lsm(np.exp(log_p_V[ids]).tolist(), target.tolist()))
    loss = Loss(student, config=config, temperature=TEMPERATURE, reference=Reference(start, temperature=TEMPERATURE))
    assert loss.of(scored).losses_N.tolist() == pytest.approx(expected, rel=2e-3, abs=2e-5)


def test_extrapolated_sampled_token_is_rewarded_by_the_target(student: Student, scorer: FakeScorer) -> None:
    start = tiny_student(seed=5)
    config = ObjectiveConfig(kind="sampled_token", extrapolation=1.25)
    scored = _scored(student, scorer, config)
    expected = [
        log_p_V[token] - (1.25 * log_q_V[token] - 0.25 * log_r_V[token])
        for token, (log_p_V, log_q_V, log_r_V) in _positions(student, scorer.teacher, start, scored=scored)
    ]
    loss = Loss(student, config=config, temperature=TEMPERATURE, reference=Reference(start, temperature=TEMPERATURE))
    assert loss.of(scored).losses_N.tolist() == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_extrapolation_and_its_reference_come_together(student: Student) -> None:
    with pytest.raises(ValueError, match="needs a reference"):
        Loss(student, config=ObjectiveConfig(extrapolation=1.25), temperature=1.0)


@pytest.mark.parametrize("kind", ["lsm", "tail_bucket", "full_vocabulary", "ema_pg", "stop_gradient", "jsd"])
def test_parts_of_the_positions_at_a_time_give_the_same_loss_and_gradient(
    student: Student, scorer: FakeScorer, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    config = ObjectiveConfig.model_validate({"kind": kind})
    scored = _scored(student, scorer, config)

    def gradients() -> tuple[list[float], list[torch.Tensor]]:
        losses_N = Loss(student, config=config, temperature=TEMPERATURE).of(scored).losses_N
        parameters: list[Any] = list(student.model.parameters())
        return losses_N.tolist(), list(torch.autograd.grad(losses_N.sum(), parameters))

    whole = gradients()
    monkeypatch.setattr(
        student_module, "ENTRIES_AT_ONCE", 4 * (VOCABULARY_SIZE if kind == "full_vocabulary" else TOP_K)
    )
    in_parts = gradients()
    assert in_parts[0] == pytest.approx(whole[0], rel=1e-5, abs=1e-6)
    for ours, theirs in zip(in_parts[1], whole[1], strict=True):
        torch.testing.assert_close(ours, theirs, atol=5e-5, rtol=1e-4)
