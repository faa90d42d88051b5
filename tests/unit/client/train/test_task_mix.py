from __future__ import annotations

import pytest
from preceptor_client.train.tasks.mixing import TaskMix, TaskOrder


def test_mixed_steps_share_prompts_by_weight() -> None:
    mix = TaskMix([3, 1], prompts_per_step=8)
    assert mix.step(1) == [(0, 6), (0, 2)]
    assert mix.step(2) == [(6, 6), (2, 2)]


def test_alternating_steps_belong_to_one_task_each() -> None:
    mix = TaskMix([1, 1], prompts_per_step=4, order="alternate")
    assert [mix.step(step) for step in (1, 2, 3)] == [[(0, 4), (0, 0)], [(4, 0), (0, 4)], [(4, 4), (4, 0)]]


def test_one_task_is_dealt_as_its_prompts_follow_each_other() -> None:
    mix = TaskMix([0.3], prompts_per_step=5)
    assert [mix.step(step) for step in (1, 2, 7)] == [[(0, 5)], [(5, 5)], [(30, 5)]]


@pytest.mark.parametrize("order", ["mix", "alternate"])
def test_a_step_is_a_function_of_its_number_alone(order: TaskOrder) -> None:
    weights = [0.21, 0.5, 1.7]
    onward = TaskMix(weights, prompts_per_step=7, order=order)
    steps = [onward.step(step) for step in range(1, 40)]
    for step in (17, 3, 39):
        assert TaskMix(weights, prompts_per_step=7, order=order).step(step) == steps[step - 1]
        assert onward.step(step) == steps[step - 1]


@pytest.mark.parametrize("order", ["mix", "alternate"])
def test_every_task_has_had_its_share_up_to_one_turn(order: TaskOrder) -> None:
    weights, size = [0.21, 0.5, 1.7], 7
    mix = TaskMix(weights, prompts_per_step=size, order=order)
    unit = size if order == "alternate" else 1
    for step in range(1, 200):
        dealt = [first + count for first, count in mix.step(step)]
        assert sum(dealt) == step * size
        for weight, number in zip(weights, dealt, strict=True):
            assert abs(number - weight / sum(weights) * step * size) < 2 * unit
