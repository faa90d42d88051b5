"""The matrix of families, as students. `make test-families` runs all of it, CI the reduced one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from preceptor_client.train.student.hidden import scored_hidden_states
from preceptor_client.train.student.sequences import ScoredSequence
from preceptor_client.train.student.student import prepare_student

from tests.families.parameters import each_family
from tests.families.student import REFUSED, StudentOutcome, student_outcome_of
from tests.families.student_document import PATH, document, is_complete
from tests.families.zoo import FAMILIES, Family, random_model
from tests.tiny import tiny_tokenizer

REFUSED_STUDENTS = {
    "camembert",
    "data2vec-text",
    "paligemma",
    "roberta",
    "roberta-prelayernorm",
    "xlm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
}
"""The families of the zoo that cannot be students."""


@pytest.fixture(scope="session")
def student_outcomes() -> dict[str, StudentOutcome]:
    """By the family's name; tests add to it."""
    return {}


@pytest.fixture
def told(student_outcomes: dict[str, StudentOutcome]) -> str:
    """docs/student_families.md, written anew where every family was tried."""
    if is_complete(student_outcomes):
        PATH.write_text(document(student_outcomes))
    return PATH.read_text()


@pytest.mark.parametrize("family", each_family())
def test_a_student_is_exact_or_refused(
    family: Family, tmp_path: Path, student_outcomes: dict[str, StudentOutcome]
) -> None:
    student_outcomes[family.name] = outcome = student_outcome_of(family, tmp_path)
    assert (outcome.writing == REFUSED) == (family.name in REFUSED_STUDENTS), outcome.message


def test_the_document_tells_of_every_family(told: str) -> None:
    rows = [line.split(" | ") for line in told.splitlines() if line.startswith("| ") and line.count("|") == 5]
    writings = {row[0].removeprefix("| "): row[1] for row in rows[1:]}
    assert writings.keys() == FAMILIES.keys(), "make test-families writes it anew"
    assert {name for name, writing in writings.items() if writing == REFUSED} == REFUSED_STUDENTS


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "mistral", "mamba2", "rwkv", "falcon_h1"])
def test_gradients_are_those_of_single_forwards(name: str) -> None:
    """Of every parameter, in float64 but for what models compute in fp32 whatever their dtype: norms, ropes, softmax.
    In fp32 with windows: their masks of float64 overflow there."""
    student = prepare_student(random_model(FAMILIES[name]), tiny_tokenizer())
    has_windows = getattr(student.model.config, "sliding_window", None)
    torch.nn.Module.to(student.model, torch.float32 if has_windows else torch.float64)  # their own `to` has no types
    rng = np.random.default_rng(0)
    stem = rng.integers(3, 256, 4).tolist()
    sequences = [
        ScoredSequence(
            prompt_ids=[*stem, *rng.integers(3, 256, num_prompt).tolist()],
            response_ids=rng.integers(3, 256, num_response).tolist(),
            positions_N=np.arange(num_response),
        )
        for num_prompt, num_response in ((9, 3), (1, 14), (20, 1))
    ]
    ours = _gradients(student.model, scored_hidden_states(student, sequences))
    theirs = _gradients(
        student.model, torch.cat([_plain_states(student.model, student.head.module, one) for one in sequences])
    )
    assert ours.keys() == theirs.keys()
    for key, gradient in theirs.items():
        assert (ours[key] - gradient).abs().max() <= (1e-3 if has_windows else 1e-4) * gradient.abs().max().clamp(
            min=1e-3
        ), key


def _plain_states(model: torch.nn.Module, head: torch.nn.Module, one: ScoredSequence) -> torch.Tensor:
    """What the head is given by a forward of this text alone, at the tokens that predict the response."""
    given: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    model(torch.tensor([[*one.prompt_ids, *one.response_ids]]), use_cache=False)
    hook.remove()
    return given[0][0, len(one.prompt_ids) - 1 : -1]


def _gradients(model: torch.nn.Module, states_ND: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of a loss that weighs each state's numbers alike at random."""
    weights_ND = torch.randn(states_ND.shape, generator=torch.Generator().manual_seed(1), dtype=states_ND.dtype)
    named = dict(model.named_parameters())
    gradients = torch.autograd.grad((states_ND * weights_ND).sum(), list(named.values()), allow_unused=True)
    return {name: gradient for name, gradient in zip(named, gradients, strict=True) if gradient is not None}
