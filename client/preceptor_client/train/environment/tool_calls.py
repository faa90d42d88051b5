"""Reads the calls of tools in what a student wrote. A parser is one method, so that another format is one class."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from preceptor.json_values import Json, read_object

from preceptor_client.train.data.excerpts import excerpt
from preceptor_client.train.environment.environment import without_thoughts


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenCall:
    """One call, as the student wrote it."""

    name: str = ""
    arguments: Mapping[str, Json] = field(default_factory=dict)
    problem: str = ""
    """What is wrong with it, for the student to read; empty where it can be made."""


class ToolCallParser(Protocol):
    """Finds calls in a text."""

    def parse(self, text: str) -> list[WrittenCall]:
        """All of them in order, those included that cannot be made."""
        ...


class HermesToolCalls:
    """`<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>`, as Hermes, Qwen2.5 and Qwen3 write them. A call
    inside of thinking is none."""

    _CALL = re.compile(r"<tool_call>(.*?)(</tool_call>|(?=<tool_call>)|\Z)", re.DOTALL)

    def parse(self, text: str) -> list[WrittenCall]:
        """As `ToolCallParser.parse`."""
        return [self._call(body, is_closed=bool(end)) for body, end in self._CALL.findall(without_thoughts(text))]

    def _call(self, body: str, *, is_closed: bool) -> WrittenCall:
        if not is_closed:
            return WrittenCall(problem="the call has no </tool_call>")
        try:
            call = read_object(body.strip())
        except ValueError as error:
            return WrittenCall(problem=f"the call is not a JSON object: {error}")
        name, arguments = call.get("name"), call.get("arguments", {})
        if not isinstance(name, str):
            return WrittenCall(problem=f"the call's 'name' must be a text; it is {excerpt(name)}")
        try:
            # Some models write the arguments as a text that holds JSON.
            given = read_object(arguments) if isinstance(arguments, str) else arguments
        except ValueError as error:
            return WrittenCall(name=name, problem=f"the call's 'arguments' are not a JSON object: {error}")
        if not isinstance(given, Mapping):
            return WrittenCall(
                name=name, problem=f"the call's 'arguments' must be an object; they are {excerpt(given)}"
            )
        return WrittenCall(name=name, arguments=given)
