"""Plain tool use as an environment: Python functions that the student may call, until it answers without a call.

class Capitals(ToolEnvironment):
    def functions(self):
        return (self.capital,)

    def capital(self, country: str) -> str:
        \"\"\"The capital of a country.\"\"\"
        return {"Norway": "Oslo"}[country]
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Sequence
from typing import Any

from preceptor_client.train.data.examples import Example
from preceptor_client.train.environment.environment import Messages, Turn, prompt_messages, without_thoughts
from preceptor_client.train.environment.functions import Function, FunctionTool
from preceptor_client.train.environment.tool_calls import HermesToolCalls, ToolCallParser
from preceptor_client.types import ChatMessage


class ToolEnvironment:
    """An `Environment` to inherit from. The student begins with the example's prompt."""

    parser: ToolCallParser = HermesToolCalls()
    """How the student writes calls; a class of your own may have another."""

    def __init__(self) -> None:
        self._tools = {tool.name: tool for tool in map(FunctionTool, self.functions())}
        self._example: Example | None = None
        self._num_calls = 0
        self._num_failed_calls = 0

    def functions(self) -> Sequence[Function]:
        """The tools; to override. Their names, docstrings and annotations are what the student is told of them."""
        raise NotImplementedError("override functions(): return the functions that the student may call")

    def reward(self, text: str) -> float | Awaitable[float | None] | None:
        """Of the student's last answer, without its thinking; to override. By default 1 where it contains one of the
        example's answers, else 0; None where the example has none. An episode that a limit ends before an answer has
        0 where the example has answers."""
        answers = self.example.answers
        return float(any(answer.strip() in text for answer in answers)) if answers else None

    @property
    def example(self) -> Example:
        """The one of this episode."""
        assert self._example is not None, "an environment is reset before it has an example"
        return self._example

    @property
    def tools(self) -> list[dict[str, Any]]:  # Any: JSON schemas
        """For the chat template."""
        return [tool.schema for tool in self._tools.values()]

    async def reset(self, example: Example) -> Messages:
        """As `Environment.reset`."""
        self._example = example
        return prompt_messages(example)

    async def step(self, text: str) -> Turn:
        """Makes the calls that the student wrote; done where it wrote none."""
        calls = self.parser.parse(text)
        if not calls:
            reward = self.reward(without_thoughts(text))
            counts = {"num_tool_calls": self._num_calls, "num_failed_tool_calls": self._num_failed_calls}
            return Turn(reward=await reward if inspect.isawaitable(reward) else reward, done=True, info=counts)
        messages = []
        for call in calls:
            tool = self._tools.get(call.name)
            if call.problem:
                said, is_made = f"error: {call.problem}", False
            elif tool is None:
                said, is_made = f"error: there is no tool {call.name!r}, only {', '.join(self._tools)}", False
            else:
                said, is_made = await tool.call(call.arguments)
            self._num_calls += 1
            self._num_failed_calls += not is_made
            messages.append(ChatMessage(role="tool", content=said, name=call.name))
        counts = {"num_tool_calls": self._num_calls, "num_failed_tool_calls": self._num_failed_calls}
        return Turn(messages=messages, info=counts, reward_if_cut=0.0 if self.example.answers else None)
