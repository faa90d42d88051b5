from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from preceptor_client.train.data.examples import Example
from preceptor_client.train.rollout.config import RolloutConfig
from preceptor_client.train.rollout.episode import Episode
from preceptor_client.train.rollout.hf import HfRollouts
from preceptor_client.train.student.recorder import StudentRecorder
from preceptor_client.train.student.student import Student

EXAMPLES = [Example(index=index, prompt=f"count {'x' * index}") for index in range(3)]


def _roll_out(student: Student, *, temperature: float, top_p: float, num_top_ids: int = 0) -> list[Episode]:
    config = RolloutConfig(prompts_per_step=3, max_new_tokens=9, temperature=2.0, top_p=top_p, responses_per_prompt=2)
    rollouts = HfRollouts(student, config=config, seed=0, loss_temperature=temperature, num_top_ids=num_top_ids)
    return [rollout for batch in rollouts.generate(EXAMPLES, step=1) for rollout in batch]


@torch.no_grad()
def _dense_logprobs(student: Student, rollout: Episode, *, temperature: float) -> torch.Tensor:
    """By one plain forward over prompt and response, [T, V], float64."""
    ids = torch.tensor([[*rollout.prompt_ids, *rollout.response_ids]])
    logits_TV = student.model(ids, use_cache=False).logits[0, len(rollout.prompt_ids) - 1 : -1].double()
    return torch.log_softmax(logits_TV / temperature, dim=1)


@pytest.mark.parametrize("top_p", [1.0, 0.5])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_view_is_the_whole_distribution_at_the_losss_temperature(
    student: Student, temperature: float, top_p: float
) -> None:
    """Neither the temperature of the sampling (2) nor its top-p show in it; responses end at unlike lengths."""
    ends = replace(student, end_token_ids=tuple(range(0, 259, 8)))
    rollouts = _roll_out(ends, temperature=temperature, top_p=top_p, num_top_ids=5)
    assert len({len(rollout.response_ids) for rollout in rollouts}) > 1
    for rollout in rollouts:
        logprobs_TV = _dense_logprobs(student, rollout, temperature=temperature)
        sampled_T = logprobs_TV.gather(1, torch.tensor(rollout.response_ids)[:, None])[:, 0]
        np.testing.assert_allclose(rollout.student.logprobs_T, sampled_T.numpy(), atol=1e-4)
        entropies_T = -(logprobs_TV.exp() * logprobs_TV).sum(dim=1)
        np.testing.assert_allclose(rollout.student.entropies_T, entropies_T.numpy(), atol=1e-4)
        assert rollout.student.top_ids_TK is not None
        kept_TK = logprobs_TV.gather(1, torch.from_numpy(rollout.student.top_ids_TK))
        np.testing.assert_allclose(kept_TK.numpy(), logprobs_TV.topk(5, dim=1).values.numpy(), atol=1e-4)


def test_likeliest_tokens_are_kept_only_when_asked_for(student: Student) -> None:
    assert all(rollout.student.top_ids_TK is None for rollout in _roll_out(student, temperature=1.0, top_p=1.0))


def test_impossible_tokens_leave_the_entropy_finite() -> None:
    recorder = StudentRecorder(temperature=1.0)
    scores = torch.tensor([[0.0, 0.0, -torch.inf]])
    assert recorder(torch.tensor([[7]]), scores) is scores
    view = recorder.finish(torch.tensor([1]), lengths=[1])[0]
    np.testing.assert_allclose(view.entropies_T, [np.log(2)], rtol=1e-6)
    np.testing.assert_allclose(view.logprobs_T, [-np.log(2)], rtol=1e-6)
