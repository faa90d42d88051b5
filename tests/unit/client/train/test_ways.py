"""Models that compute something else in a batch, behind padding, from a cache, or in a long text are found out, and are
run in the quickest way that is exact."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from preceptor_client.train.errors import InvalidStudentError, StopRequestedError
from preceptor_client.train.student.generation import Sampling, generate, generate_recorded
from preceptor_client.train.student.hidden import scored_hidden_states
from preceptor_client.train.student.recorder import StudentRecorder
from preceptor_client.train.student.sequences import ScoredSequence
from preceptor_client.train.student.student import Student, prepare_student
from preceptor_client.train.student.ways import Training, Ways
from preceptor_client.train.student.writing import Together, Writing
from transformers import PreTrainedModel

from tests.families.zoo import FAMILIES, random_model
from tests.tiny import tiny_llama, tiny_tokenizer

LONG = 60
FROM = 40
"""Tokens from which the models of these tests that change with length compute otherwise."""
Options = dict[str, Any]  # Any: keywords of a forward


def _changed(change: Callable[[torch.Tensor, Options], Options]) -> PreTrainedModel:
    """A model whose forward is given other options than it is called with."""
    model = tiny_llama(spread=0.3)
    plain = model.forward

    @functools.wraps(plain)
    def forward(input_ids: torch.Tensor, **options: Any) -> Any:  # Any: as the model's own
        return plain(input_ids, **change(input_ids, options))

    model.forward = forward
    return model


def _without_padding(_: torch.Tensor, options: Options) -> Options:
    return options | {"attention_mask": None, "position_ids": None}


def _without_padding_when_long(ids_BT: torch.Tensor, options: Options) -> Options:
    mask_BT = options.get("attention_mask")
    num_tokens = ids_BT.shape[1] if mask_BT is None else mask_BT.shape[1]
    return _without_padding(ids_BT, options) if num_tokens > FROM else options


def _of_the_batch(module: torch.nn.Module, _: object, states_BTD: torch.Tensor) -> torch.Tensor:
    return (states_BTD + states_BTD.mean(dim=0)) / 2


def _routing_by_batch() -> PreTrainedModel:
    model = _changed(_without_padding)
    model.get_submodule("model.norm").register_forward_hook(_of_the_batch)
    return model


def _with_a_wrong_cache() -> PreTrainedModel:
    """Its rope counts what it is given, not what came before."""

    def change(ids_BT: torch.Tensor, options: Options) -> Options:
        cache = options.get("past_key_values")
        if cache is None or not cache.get_seq_length():
            return options
        return options | {"position_ids": torch.zeros_like(ids_BT)}

    return _changed(change)


@pytest.mark.parametrize(
    ("model", "together", "caches", "training"),
    [
        (tiny_llama(spread=0.3), Together.SHARED, True, Training.FLAT),
        (_changed(_without_padding), Together.ONE_LENGTH, True, Training.PADDED),
        (_routing_by_batch(), Together.ALONE, True, Training.ALONE),
        (_with_a_wrong_cache(), Together.PADDED, False, Training.FLAT),
    ],
    ids=["plain", "blind to padding", "mixes a batch", "wrong from its cache"],
)
def test_the_quickest_exact_way_is_found(
    model: PreTrainedModel, together: Together, caches: bool, training: Training
) -> None:
    student = prepare_student(model, tiny_tokenizer())
    writing = Writing(together=together, caches=caches)
    assert student.ways.up_to(LONG) == Ways(writing=writing, training=training)
    _assert_exact(student)


def _assert_exact(student: Student) -> None:
    """What is recorded, and the states trained on, are those of plain forwards of single texts."""
    prompts = [[9, 8, 7, 6], [9, 8], [9, 8, 5, 4], [7] * 30]
    responses, views = generate_recorded(
        student,
        prompts,
        max_new_tokens=8,
        sampling=Sampling(temperature=1.0, top_p=1.0),
        recorder=StudentRecorder(temperature=1.0),
    )
    sequences = [
        ScoredSequence(prompt_ids=prompt, response_ids=response, positions_N=np.arange(len(response)))
        for prompt, response in zip(prompts, responses, strict=True)
    ]
    trained_NV = student.head.logits(scored_hidden_states(student, sequences)).log_softmax(dim=1)
    start = 0
    for prompt, response, view in zip(prompts, responses, views, strict=True):
        with torch.no_grad():
            logits_TV = student.model(torch.tensor([prompt + response]), use_cache=False).logits[0]
        logprobs_TV = logits_TV[len(prompt) - 1 : -1].log_softmax(dim=1)
        sampled_T = logprobs_TV.gather(1, torch.tensor(response)[:, None])[:, 0]
        np.testing.assert_allclose(view.logprobs_T, sampled_T.numpy(), atol=1e-4)
        torch.testing.assert_close(trained_NV[start : start + len(response)], logprobs_TV, atol=1e-4, rtol=1e-4)
        start += len(response)


def test_what_breaks_past_a_length_is_found_once_texts_are_that_long() -> None:
    ways = prepare_student(_changed(_without_padding_when_long), tiny_tokenizer()).ways
    assert ways.up_to(FROM).writing.together is Together.SHARED
    assert ways.up_to(LONG).writing.together is Together.ONE_LENGTH
    assert ways.up_to(10) == ways.up_to(LONG), "a run has one way, whatever was asked for before"


@pytest.mark.parametrize(("name", "together"), [("mpt", Together.PADDED), ("gpt_neo", Together.PADDED)])
def test_distances_that_are_counted_in_padding_forbid_a_shared_prefix(name: str, together: Together) -> None:
    """ALiBi, and windows that the cache does not know of."""
    student = prepare_student(random_model(FAMILIES[name]), tiny_tokenizer())
    assert student.ways.up_to(LONG).writing.together is together


def test_prompts_of_one_length_are_answered_together_and_in_their_order() -> None:
    writing = Writing(together=Together.ONE_LENGTH)
    assert writing.parts([[1, 2], [1], [3, 4], [5, 6, 7]]) == [[1], [0, 2], [3]]
    student = prepare_student(_changed(_without_padding), tiny_tokenizer())
    prompts = [[9, 8, 7], [9, 8], [5, 4, 3], [7]]
    together = generate(student, prompts, max_new_tokens=9, sampling=None)
    assert together == [generate(student, [prompt], max_new_tokens=9, sampling=None)[0] for prompt in prompts]


@pytest.mark.parametrize("error", [StopRequestedError("stop"), torch.OutOfMemoryError("too large")])
def test_what_is_no_refusal_of_the_model_is_not_taken_for_one(error: Exception) -> None:
    """A run that is asked to stop is told so in the next forward, which may be of a probe."""
    student = prepare_student(tiny_llama(), tiny_tokenizer())

    num_plain = 2  # forwards of the texts alone, which come first
    calls = itertools.count(1)

    def fail(*_: object) -> None:
        if next(calls) > num_plain:
            raise error

    hook = student.model.register_forward_pre_hook(fail)
    with pytest.raises(type(error)):
        student.ways.up_to(LONG)
    hook.remove()
    assert student.ways.up_to(LONG).writing.together is Together.SHARED


def test_a_slow_way_is_told() -> None:
    ways = prepare_student(_routing_by_batch(), tiny_tokenizer()).ways.up_to(LONG)
    assert ways.warnings == (
        "the student answers prompts one at a time: other ways of answering a batch change its numbers",
        "the student is trained on one response at a time: padding changes its numbers",
    )
    assert not prepare_student(tiny_llama(), tiny_tokenizer()).ways.up_to(LONG).warnings


def test_a_text_beyond_the_context_is_refused() -> None:
    ways = prepare_student(tiny_llama(max_length=32), tiny_tokenizer()).ways
    ways.up_to(32)
    with pytest.raises(InvalidStudentError, match=r"33 tokens .* context of 32: .*rollout\.max_new_tokens"):
        ways.up_to(33)


def test_a_model_whose_tokens_see_later_ones_is_refused() -> None:
    def see_all(ids_BT: torch.Tensor, options: Options) -> Options:
        seen = torch.zeros(len(ids_BT), 1, ids_BT.shape[1], ids_BT.shape[1])
        return options | {"attention_mask": seen}

    with pytest.raises(InvalidStudentError, match=r"student\.model: LlamaForCausalLM lets tokens see those after them"):
        prepare_student(_changed(see_all), tiny_tokenizer())


@pytest.mark.parametrize("length", [29, 35, LONG])
def test_the_length_that_changes_a_longrope_is_found(length: int) -> None:
    student = prepare_student(random_model(FAMILIES["phi3-longrope"]), tiny_tokenizer())
    assert student.ways.constant_up_to(28) is None
    assert student.ways.constant_up_to(length) == 28
    with pytest.raises(InvalidStudentError, match=r"more than 28 tokens.*rollout\.max_new_tokens"):
        student.ways.up_to(length)
    student.ways.up_to(28)
