"""The student's module as trainers wrap it: a step calls the wrapper, and gradients stay the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from preceptor_client.train.data.examples import Example
from preceptor_client.train.learner.config import OptimizerConfig
from preceptor_client.train.learner.loss import Loss
from preceptor_client.train.learner.measure import student_columns
from preceptor_client.train.objective.config import ObjectiveConfig
from preceptor_client.train.objective.reference import Reference
from preceptor_client.train.rollout.config import RolloutConfig
from preceptor_client.train.rollout.hf import HfRollouts
from preceptor_client.train.student import module as student_module
from preceptor_client.train.student.module import StudentForScoring, StudentOutputs
from preceptor_client.train.student.student import Student
from preceptor_client.train.teacher.config import TeacherConfig
from preceptor_client.train.teacher.scored import ScoredEpisode
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.overrides import TorchFunctionMode

from tests.unit.client.train.assembled import learner_for, one_task, position_weights, scoring_for, weighted_mean
from tests.unit.client.train.fake_scorer import FakeScorer, agreement_with
from tests.unit.client.train.tiny import tiny_student

TEMPERATURE, TOP_K, VOCABULARY_SIZE = 0.7, 6, 259
MeasureGradients = Callable[[Student], list[torch.Tensor]]


class _Wrapped(torch.nn.Module):
    """As DistributedDataParallel holds what it wraps."""

    def __init__(self, module: StudentForScoring) -> None:
        super().__init__()
        self.module = module
        self.num_calls = 0

    def forward(self, *arguments: Any, **options: Any) -> StudentOutputs:  # Any: handed on
        self.num_calls += 1
        return self.module(*arguments, **options)


def _as_student(student: Student, wrapper: torch.nn.Module) -> Student:
    return replace(student, module=cast(StudentForScoring, wrapper))


@pytest.fixture(params=["lsm", "full_vocabulary", "tail_bucket, in parts"])
def gradients(request: pytest.FixtureRequest, scorer: FakeScorer, monkeypatch: pytest.MonkeyPatch) -> MeasureGradients:
    """Of two micro-batches of one step, by the parameters' order."""
    kind, _, in_parts = request.param.partition(", ")
    if in_parts:
        monkeypatch.setattr(student_module, "ENTRIES_AT_ONCE", 4 * TOP_K)
    config = ObjectiveConfig.model_validate({"kind": kind})
    scored = _scored(tiny_student(), scorer, config)
    weights = position_weights(scored, reduction="position_mean")

    def measure(student: Student) -> list[torch.Tensor]:
        loss = Loss(student, config=config, temperature=TEMPERATURE)
        optimizer = OptimizerConfig(learning_rate=1e-3, micro_batch_size=2)
        update = learner_for(student, config=optimizer, loss=loss)
        update.accumulate_gradients(one_task(scored, weighted_mean(weights)))
        return [_whole(parameter.grad) for parameter in student.module.parameters()]

    return measure


def _whole(gradient: torch.Tensor | None) -> torch.Tensor:
    assert gradient is not None
    whole = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
    assert whole.abs().max() > 0
    return whole


def _scored(student: Student, scorer: FakeScorer, config: ObjectiveConfig) -> list[ScoredEpisode]:
    rollout = RolloutConfig(prompts_per_step=3, max_new_tokens=5, batch_size=8, top_p=1.0)
    scoring = scoring_for(
        scorer,
        teacher=TeacherConfig(address="a:1", top_k=TOP_K, temperature=TEMPERATURE),
        objective=config,
        agreement=agreement_with(scorer.teacher),
        vocabulary_size=VOCABULARY_SIZE,
    )
    examples = [Example(index=index, prompt="ab" * (index + 1)) for index in range(3)]
    rollouts = HfRollouts(student, config=rollout, seed=0, loss_temperature=TEMPERATURE)
    for batch in rollouts.generate(examples, step=1):
        scoring.submit(batch, name="step-1")
    return scoring.gather()


def _assert_equal(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> None:
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, atol=1e-6, rtol=1e-6)


def test_a_wrapper_around_the_module_is_what_a_step_calls(gradients: MeasureGradients) -> None:
    plain = tiny_student()
    wrapper = _Wrapped(tiny_student().module)
    wrapped = _as_student(plain, wrapper)
    _assert_equal(gradients(wrapped), gradients(plain))
    assert wrapper.num_calls == 2, "one forward for each of the two micro-batches"
    assert wrapped.model is wrapper.module.model


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
def test_gradients_under_distributed_data_parallel_are_the_same(gradients: MeasureGradients) -> None:
    parallel = torch.nn.parallel.DistributedDataParallel(tiny_student().module)
    _assert_equal(gradients(_as_student(tiny_student(), parallel)), gradients(tiny_student()))


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("reshards", [True, False], ids=["resharded after the forward", "kept until the backward"])
@pytest.mark.parametrize("shards_layers", [True, False], ids=["layer by layer", "whole"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_gradients_of_the_sharded_module_are_the_same(
    gradients: MeasureGradients, tied: bool, shards_layers: bool, reshards: bool
) -> None:
    sharded = tiny_student(tied=tied)
    mesh = DeviceMesh("cpu", [0])
    for layer in sharded.model.base_model.get_submodule("layers").children() if shards_layers else ():
        fully_shard(layer, mesh=mesh, reshard_after_forward=reshards)
    fully_shard(sharded.module, mesh=mesh, reshard_after_forward=reshards)
    assert all(isinstance(parameter, DTensor) for parameter in sharded.module.parameters())
    _assert_equal(gradients(sharded), gradients(tiny_student(tied=tied)))


class _SeenOutside(TorchFunctionMode):
    """Notes every torch function that is given a parameter while no forward of the module runs."""

    def __init__(self, *modules: StudentForScoring) -> None:
        super().__init__()
        self.functions: list[str] = []
        self._parameters = {id(parameter) for module in modules for parameter in module.parameters()}
        self._depth = 0
        for module in modules:
            module.register_forward_pre_hook(self._enter)
            module.register_forward_hook(self._leave)

    def _enter(self, *_: object) -> None:
        self._depth += 1

    def _leave(self, *_: object) -> None:
        self._depth -= 1

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:  # Any: as torch's own
        leaves = torch.utils._pytree.tree_leaves((args, kwargs))
        is_attribute = getattr(func, "__name__", "") == "__get__"  # a device, a dtype
        if not self._depth and not is_attribute and any(id(leaf) in self._parameters for leaf in leaves):
            self.functions.append(repr(func))
        return func(*args, **(kwargs or {}))


def test_a_step_reads_no_parameter_outside_the_forward(student: Student, scorer: FakeScorer) -> None:
    config = ObjectiveConfig(kind="sampled_token", extrapolation=1.25)
    start = tiny_student(seed=5)
    scored = _scored(student, scorer, config)
    loss = Loss(student, config=config, temperature=TEMPERATURE, reference=Reference(start, temperature=TEMPERATURE))
    update = learner_for(student, config=OptimizerConfig(learning_rate=1e-3), loss=loss)
    weights = position_weights(scored, reduction="position_mean")
    with _SeenOutside(student.module, start.module) as seen:
        update.accumulate_gradients(one_task(scored, weighted_mean(weights)))
        student_columns(student, scored, temperature=TEMPERATURE)
    assert seen.functions == []
    with seen:
        student.model(torch.tensor([[1, 2]]))
    assert any("embedding" in name for name in seen.functions), "the watch sees what it is about"
