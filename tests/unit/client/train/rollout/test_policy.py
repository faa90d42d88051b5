from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from preceptor_client.train.data.examples import Example
from preceptor_client.train.errors import InvalidDataError, InvalidPartError
from preceptor_client.train.rollout.config import RolloutConfig
from preceptor_client.train.rollout.engine import ENGINES
from preceptor_client.train.rollout.hf import HfRollouts, StudentEngine
from preceptor_client.train.rollout.policy import HfPolicy
from preceptor_client.train.student import generation
from preceptor_client.train.student.recorder import StudentRecorder
from preceptor_client.train.student.student import Student
from preceptor_client.types import ChatMessage

PROMPTS = [(10, 11, 12), (10, 11, 12, 13, 14), (40,)]
RESPONSES = [(20, 21), (30,), (50, 51, 52, 53)]


@torch.no_grad()
def _dense_logprobs(
    student: Student, prompt: tuple[int, ...], response: tuple[int, ...], *, temperature: float
) -> torch.Tensor:
    """By one plain forward of the model over prompt and response, [T, V], float64."""
    logits_TV = (
        student.model(torch.tensor([[*prompt, *response]]), use_cache=False).logits[0, len(prompt) - 1 : -1].double()
    )
    return torch.log_softmax(logits_TV / temperature, dim=1)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("chunk", [1, 259 * 3, 1 << 24])
def test_view_is_the_log_softmax_of_plain_logits(
    student: Student, monkeypatch: pytest.MonkeyPatch, temperature: float, chunk: int
) -> None:
    """fp32 against fp64: 1e-4 is what their sums over 259 logits may differ by."""
    monkeypatch.setattr("preceptor_client.train.rollout.policy.CHUNK_ELEMENTS", chunk)
    policy = HfPolicy(student, loss_temperature=temperature, num_top_ids=5)
    views = policy.view(PROMPTS, RESPONSES)
    for view, prompt, response in zip(views, PROMPTS, RESPONSES, strict=True):
        logprobs_TV = _dense_logprobs(student, prompt, response, temperature=temperature)
        wanted_T = logprobs_TV.gather(1, torch.tensor(response)[:, None])[:, 0]
        np.testing.assert_allclose(view.logprobs_T, wanted_T.numpy(), atol=1e-4)
        np.testing.assert_allclose(view.entropies_T, -(logprobs_TV.exp() * logprobs_TV).sum(dim=1).numpy(), atol=1e-4)
        assert view.top_ids_TK is not None
        kept_TK = logprobs_TV.gather(1, torch.from_numpy(view.top_ids_TK))
        np.testing.assert_allclose(kept_TK.numpy(), logprobs_TV.topk(5, dim=1).values.numpy(), atol=1e-4)
        assert view.logprobs_T.dtype == np.float32


def test_view_of_what_the_student_wrote_is_what_it_noted_while_it_wrote(student: Student) -> None:
    policy = HfPolicy(student, num_top_ids=3)
    written = policy.write(PROMPTS, temperature=1.5, top_p=0.8, max_new_tokens=6, seed=1)
    views = policy.view(PROMPTS, [one.ids for one in written])
    for view, one in zip(views, written, strict=True):
        np.testing.assert_allclose(view.logprobs_T, one.student.logprobs_T, atol=1e-4)
        np.testing.assert_allclose(view.entropies_T, one.student.entropies_T, atol=1e-4)


def test_view_makes_no_gradient_and_draws_nothing(student: Student) -> None:
    before = torch.random.get_rng_state()
    HfPolicy(student).view(PROMPTS, RESPONSES)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in student.model.parameters())


def test_written_is_a_function_of_the_seed_and_ends_as_it_says(student: Student) -> None:
    policy = HfPolicy(replace(student, end_token_ids=tuple(range(0, 259, 4))))
    first, again, other = (
        policy.write(PROMPTS * 4, temperature=1.0, top_p=1.0, max_new_tokens=5, seed=seed) for seed in (1, 1, 2)
    )
    assert [one.ids for one in first] == [one.ids for one in again] != [one.ids for one in other]
    assert {one.finish_reason for one in first} == {"stop", "length"}
    assert all((one.ids[-1] % 4 == 0) == (one.finish_reason == "stop") for one in first)


def test_single_turns_are_drawn_as_by_one_generation_per_batch(student: Student) -> None:
    """By hand, with seeds that never change: a resumed run goes on by the same draws."""
    config = RolloutConfig(prompts_per_step=3, max_new_tokens=5, batch_size=2, responses_per_prompt=2)
    examples = [Example(index=index, prompt=f"count {'x' * index}") for index in range(2)]
    seeds = [5765311355833121739, 3876352617181868384]
    batches = list(HfRollouts(student, config=config, seed=7).generate(examples, step=3))
    for example, seed, batch in zip(examples, seeds, batches, strict=True):
        prompt = student.encode_prompt(example.prompt)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            responses, _ = generation.generate_recorded(
                student,
                [prompt, prompt],
                max_new_tokens=5,
                sampling=generation.Sampling(temperature=1.0, top_p=0.9),
                recorder=StudentRecorder(temperature=1.0),
            )
        assert [list(one.response_ids) for one in batch] == responses
        assert [one.sample for one in batch] == [0, 1]
        assert [one.policy_version for one in batch] == [2, 2]


def test_variables_of_an_example_beat_those_of_the_run(student: Student) -> None:
    student.tokenizer.chat_template = "{{ a }}{{ b }}{{ tools[0].function.name }}"
    policy = HfPolicy(replace(student, chat_template_kwargs={"a": "1", "b": "2"}))
    example = Example(
        index=0,
        prompt=(ChatMessage(role="user", content="hi"),),
        tools=('{"type": "function", "function": {"name": "f"}}',),
        chat_template_kwargs={"b": "3"},
    )
    assert policy.decode(policy.encode(example.prompt, example=example)) == "13f"
    assert policy.num_ids == 259


@pytest.mark.parametrize("name", ["tools", "chat_template_kwargs"])
def test_text_is_given_to_no_template_and_what_is_for_one_is_refused(student: Student, name: str) -> None:
    tools = ("{}",) if name == "tools" else ()
    example = Example(index=0, where="a:1", prompt="hi", chat_template_kwargs={"b": 3}, tools=tools)
    with pytest.raises(InvalidDataError, match=f"^a:1: its '{name}' are for a chat template, and its prompt is a text"):
        HfPolicy(student).encode("hi", example=example)


def test_built_in_engine_is_named_student() -> None:
    assert isinstance(ENGINES.make("student", key="rollout.engine"), StudentEngine)
    with pytest.raises(InvalidPartError, match=r"rollout\.engine='hf' is not a rollout engine: write one of student"):
        ENGINES.find("hf", key="rollout.engine")
