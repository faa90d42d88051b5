"""Settings of the data: what is practised on, and what is measured on. Imports no torch."""

from __future__ import annotations

from typing import Literal, Self

from preceptor.settings import Section
from pydantic import Field, model_validator


class DataConfig(Section):
    """What the student practises on, and what it is measured on."""

    train: str
    """A JSONL file (its name ends with .jsonl), or the name of a dataset of Hugging Face `datasets`."""
    heldout: str | None = None
    """The same for examples that are never trained on, with answers unless evaluation.loss is all that is measured;
    without it nothing is measured."""
    subset: str | None = None
    """Configuration of a named dataset."""
    train_split: str = "train"
    """Split of a named dataset to train on."""
    heldout_split: str = "test"
    """Split of a named dataset to measure on."""
    prompt_field: str = "prompt"
    """Column of a named dataset with the prompt: a text, or a list of messages."""
    answer_field: str = "answer"
    """Column of a named dataset with the expected answer; need not exist for training."""
    extra_fields: Literal["refuse", "ignore", "keep"] = "refuse"
    """Whether a JSONL file may have other keys, such as an id. By default it may not: one may be a misspelt name. keep
    hands them, and a named dataset's other columns, to parts of your own as `example.extra`: a rubric, test cases."""
    on_bad_example: Literal["stop", "skip"] = "stop"
    """What an example does that cannot be read, or that a chat template or the teacher refuses: it stops the run, which
    is saved first, or it is left out, counted, and listed in the run's bad_examples.jsonl."""
    max_bad_examples: int = Field(100, ge=0)
    """Most examples to leave out, before the first step and since; one more stops the run."""

    @model_validator(mode="after")
    def _columns_are_for_named_datasets(self) -> Self:
        is_named = {name: bool(source) and not source.endswith(".jsonl") for name, source in self._sources.items()}
        readers = {"train_split": ("train",), "heldout_split": ("heldout",)}
        for name in ("subset", "train_split", "heldout_split", "prompt_field", "answer_field"):
            is_read = any(is_named[source] for source in readers.get(name, is_named))
            if getattr(self, name) != type(self).model_fields[name].default and not is_read:
                raise ValueError(f"data.{name} is for a named dataset, and none is read: a JSONL file has its own keys")
        return self

    @property
    def _sources(self) -> dict[str, str]:
        return {"train": self.train, "heldout": self.heldout or ""}
