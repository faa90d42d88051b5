from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from preceptor_client.train.data.examples import Example
from preceptor_client.train.rollout.config import RolloutConfig
from preceptor_client.train.rollout.episode import Episode
from preceptor_client.train.rollout.hf import HfRollouts
from preceptor_client.train.student import writing
from preceptor_client.train.student.generation import Sampling, generate
from preceptor_client.train.student.student import Student

EXAMPLES = [Example(index=index, prompt=f"count {'x' * index}") for index in range(5)]
CONFIG = RolloutConfig(prompts_per_step=5, max_new_tokens=12, batch_size=4, responses_per_prompt=2)


def _roll_out(student: Student, *, seed: int = 0, step: int = 1) -> list[list[Episode]]:
    return list(HfRollouts(student, config=CONFIG, seed=seed).generate(EXAMPLES, step=step))


def test_same_seed_and_step_give_the_same_rollouts_whatever_was_drawn_before(student: Student) -> None:
    first = _roll_out(student)
    torch.rand(7)
    assert _roll_out(student) == first
    assert _roll_out(student, step=2) != first
    assert _roll_out(student, seed=1) != first


def test_global_random_state_is_left_alone(student: Student) -> None:
    before = torch.random.get_rng_state()
    _roll_out(student)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_batches_hold_whole_groups_of_at_most_the_batch_size(student: Student) -> None:
    batches = _roll_out(student)
    assert [[rollout.slot for rollout in batch] for batch in batches] == [[0, 0, 1, 1], [2, 2, 3, 3], [4, 4]]
    assert all(rollout.example == EXAMPLES[rollout.slot] for batch in batches for rollout in batch)


def test_response_stops_at_its_first_end_token(student: Student) -> None:
    # Half of the vocabulary ends a response, so that most stop early.
    ends = replace(student, end_token_ids=tuple(range(0, 259, 2)))
    rollouts = [rollout for batch in _roll_out(ends) for rollout in batch]
    assert {rollout.finish_reason for rollout in rollouts} >= {"stop"}
    assert len({len(rollout.response_ids) for rollout in rollouts}) > 1
    for rollout in rollouts:
        assert not any(token % 2 == 0 for token in rollout.response_ids[:-1])
        assert (rollout.response_ids[-1] % 2 == 0) == (rollout.finish_reason == "stop")
        assert rollout.finish_reason == "stop" or len(rollout.response_ids) == CONFIG.max_new_tokens


def test_greedy_batch_equals_greedy_one_by_one(student: Student) -> None:
    prompts = [student.encode_prompt(example.prompt) for example in EXAMPLES]
    together = generate(student, prompts, max_new_tokens=10, sampling=None)
    alone = [generate(student, [prompt], max_new_tokens=10, sampling=None)[0] for prompt in prompts]
    assert together == alone


def test_sampling_ignores_what_the_model_came_with(student: Student, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a distribution that is flat, tokens beyond the 50 likeliest (the default of transformers) must appear."""
    with torch.no_grad():
        student.model.get_output_embeddings().weight.zero_()
    monkeypatch.setattr(writing, "shared_prefix_length", lambda prompts: 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        responses = generate(student, [[1, 2]] * 64, max_new_tokens=8, sampling=Sampling(temperature=1.0, top_p=1.0))
    assert len({token for response in responses for token in response}) > 100


def test_nucleus_keeps_the_likeliest_tokens_only(student: Student) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = generate(student, [[1, 2]] * 32, max_new_tokens=1, sampling=Sampling(temperature=1.0, top_p=1e-6))
    assert drawn == generate(student, [[1, 2]] * 32, max_new_tokens=1, sampling=None)
