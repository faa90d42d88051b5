"""Loads the examples of a task, or numbers them for an environment that makes its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from preceptor_client.train.data.bad_examples import BadExamples
from preceptor_client.train.data.examples import Example
from preceptor_client.train.data.loading import load_heldout_examples, load_train_examples
from preceptor_client.train.tasks.task import Task


def train_examples(task: Task, *, bad: BadExamples) -> list[Example]:
    """What it practises on."""
    source = task.source("train")
    if task.data.train:
        return _named(bad.left(load_train_examples(task.data, of=source, bad=bad), of=source), task=task)
    count = task.environment.num_examples if task.environment else 0
    return _named(bad.left(_numbered(task, range(count)), of=source), task=task)


def heldout_examples(task: Task, *, bad: BadExamples) -> list[Example]:
    """What it is measured on; none where nothing is named."""
    source = task.source("heldout")
    if task.data.heldout is not None or not task.environment:
        return _named(bad.left(load_heldout_examples(task.data, of=source, bad=bad), of=source), task=task)
    first = task.environment.num_examples
    return _named(bad.left(_numbered(task, range(first, first + task.environment.num_heldout)), of=source), task=task)


def _numbered(task: Task, numbers: range) -> list[Example]:
    return [Example(index=number, where=f"{task.key('environment')} example {number}", prompt="") for number in numbers]


def _named(examples: Sequence[Example], *, task: Task) -> list[Example]:
    """What names no task of its own belongs to the run's."""
    return [example if example.task or not task.name else replace(example, task=task.name) for example in examples]
