"""Loads the examples of a source that the settings name: a JSONL file, or a dataset of Hugging Face `datasets`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from preceptor_client.train.data.bad_examples import BadExamples, Source, setting_of
from preceptor_client.train.data.config import DataConfig
from preceptor_client.train.data.examples import Example
from preceptor_client.train.data.excerpts import message_of
from preceptor_client.train.data.reading import Row, json_lines
from preceptor_client.train.data.rows import KEYS, ExtraFields, parse_example
from preceptor_client.train.errors import InvalidDataError


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetRow:
    """A row of a named dataset."""

    index: int
    where: str
    columns: Mapping[str, object]
    prompt_field: str
    answer_field: str
    keeps_others: bool = False

    def fields(self) -> Mapping[str, object]:
        """The columns that the settings name, and those that have the name of a field. A dataset is not written for
        this program: its other columns are left out, unless they are to be kept."""
        named = {"prompt": self.prompt_field, "answer": self.answer_field}
        read = {key: self.columns[named.get(key, key)] for key in KEYS if named.get(key, key) in self.columns}
        if not self.keeps_others:
            return read
        others = set(self.columns) - set(KEYS) - set(named.values())
        return {**read, **{name: self.columns[name] for name in others}}


def load_train_examples(data: DataConfig, *, of: Source = "train", bad: BadExamples | None = None) -> list[Example]:
    """The examples to practise on."""
    return _load(data, data.train, split=data.train_split, of=of, bad=bad)


def load_heldout_examples(data: DataConfig, *, of: Source = "heldout", bad: BadExamples | None = None) -> list[Example]:
    """The examples to measure on; none where the settings name none."""
    if data.heldout is None:
        return []
    return _load(data, data.heldout, split=data.heldout_split, of=of, bad=bad)


def load_examples(
    source: str,
    *,
    split: str = "train",
    subset: str | None = None,
    prompt_field: str = "prompt",
    answer_field: str = "answer",
    extra_fields: ExtraFields = "refuse",
    of: Source = "train",
    bad: BadExamples | None = None,
) -> list[Example]:
    """Reads a JSONL file where `source` ends with .jsonl, else a dataset of Hugging Face `datasets`.

    The four before `extra_fields` are for datasets, whose other columns are never refused. Raises InvalidDataError,
    which names the file and the line; `bad` may take those of single rows instead, which are left out then."""
    bad = BadExamples() if bad is None else bad
    rows: Iterable[Row]
    if source.endswith(".jsonl"):
        rows = json_lines(_path(source))
    else:
        rows = _dataset_rows(
            source,
            split=split,
            subset=subset,
            prompt_field=prompt_field,
            answer_field=answer_field,
            keeps_others=extra_fields == "keep",
        )
    examples: list[Example] = []
    num_rows = 0
    for row in rows:
        num_rows += 1
        try:
            examples.append(_example(row, extra_fields=extra_fields))
        except InvalidDataError as error:
            bad.leave_out(error, of=of)
    if not num_rows:
        raise InvalidDataError(f"{source}: holds no example")
    return examples


def _load(data: DataConfig, source: str, *, split: str, of: Source, bad: BadExamples | None) -> list[Example]:
    bad = BadExamples() if bad is None else bad
    try:
        examples = load_examples(
            source,
            split=split,
            subset=data.subset,
            prompt_field=data.prompt_field,
            answer_field=data.answer_field,
            extra_fields=data.extra_fields,
            of=of,
            bad=bad,
        )
    except InvalidDataError as error:
        if error.where:
            raise
        raise InvalidDataError(f"{setting_of(of)}: {error.why}") from error
    bad.refuse_too_many(of=of, num_left=len(examples))
    return examples


def _example(row: Row, *, extra_fields: ExtraFields) -> Example:
    try:
        fields = row.fields()
    except InvalidDataError as error:
        raise InvalidDataError(error.why, where=row.where) from error
    return parse_example(fields, index=row.index, where=row.where, extra_fields=extra_fields)


def _path(source: str) -> Path:
    try:
        return Path(source).expanduser()
    except RuntimeError as error:
        raise InvalidDataError(f"{source}: {error}") from error


def _dataset_rows(
    name: str, *, split: str, subset: str | None, prompt_field: str, answer_field: str, keeps_others: bool
) -> Iterator[DatasetRow]:
    if os.path.isfile(name):
        raise InvalidDataError(
            f"{name}: is a file, and the name of a file must end with .jsonl: write one JSON object on each line"
        )
    for index, columns in enumerate(_dataset(name, split=split, subset=subset)):
        if prompt_field not in columns:
            known = ", ".join(sorted(columns))
            raise InvalidDataError(
                f"{name} [{split}]: no column {prompt_field!r}: set data.prompt_field to one of {known}"
            )
        yield DatasetRow(
            index=index,
            where=f"{name} [{split}] row {index}",
            columns=columns,
            prompt_field=prompt_field,
            answer_field=answer_field,
            keeps_others=keeps_others,
        )


def _dataset(name: str, *, split: str, subset: str | None) -> Iterator[Mapping[str, object]]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError
    from pyarrow import ArrowException

    try:
        yield from load_dataset(name, subset, split=split)
    except (DatasetsError, ArrowException, OSError, ValueError) as error:
        if isinstance(error, InvalidDataError):
            raise
        # What datasets raises for a name it does not know, a hub out of reach, and files that it cannot read.
        raise InvalidDataError(
            f"{name}: not a dataset that can be read ({message_of(error)}); the name of a file must end with .jsonl"
        ) from error
