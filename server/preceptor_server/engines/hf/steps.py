"""Two ways to compute a group in steps of bounded size: its prompt once and kept, or again with every few responses."""

# D = hidden size, N = scored positions of a step

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import torch

from preceptor_server.context_costs import ContextCosts
from preceptor_server.engines.hf.causal_lm import LoadedModel
from preceptor_server.engines.hf.forwards import Forwards, responses_by_regime
from preceptor_server.engines.hf.kept_forwards import KeptForwards, longest_of
from preceptor_server.engines.hf.memory import ForwardSize
from preceptor_server.engines.hf.slicing import slice_group
from preceptor_server.types import ScoreGroup


class Steps(Protocol):
    """The steps of one group, in order."""

    @property
    def responses(self) -> Sequence[int]:
        """Indices of the group's responses in the order in which the steps answer them."""

    @property
    def num_steps(self) -> int: ...

    def num_tokens(self, index: int) -> int:
        """That the step computes."""

    def cost(self, index: int) -> float:
        """Of these, each with its context."""

    def hidden_states(self, index: int) -> torch.Tensor:
        """Those that predict the scored tokens of the step, [N, D]."""

    def sizes(self) -> list[ForwardSize]:
        """Of all forwards."""

    @property
    def num_kept_tokens(self) -> int:
        """Whose keys and values are held at once, at most."""

    def drop(self) -> None:
        """Gives up what is held between two steps, if it can be had again."""


class KeptSteps:
    """The prompt once, for each regime of the rope where it has several."""

    def __init__(self, model: LoadedModel, group: ScoreGroup, *, max_cost: float) -> None:
        self.responses: list[int] = []
        self._parts: list[KeptForwards] = []
        self._steps: list[tuple[KeptForwards, int]] = []
        self._sizes: list[ForwardSize] = []
        self.num_kept_tokens = 0
        for indices in responses_by_regime(group, rope=model.rope) if model.rope else [range(len(group.responses))]:
            part = replace(group, responses=tuple(group.responses[index] for index in indices))
            longest = len(group.prompt_ids_P) + max(len(one.ids_T) for one in part.responses)
            slicing = slice_group(
                part,
                model.shape.context_costs,
                max_cost=max_cost,
                keeps_last_tokens=bool(model.rope),
                num_positions=longest if model.rope else None,
            )
            forwards = KeptForwards(model, slicing)
            self.responses += indices
            self._parts.append(forwards)
            self._steps += [(forwards, index) for index in range(len(slicing.slices))]
            self._sizes += [
                ForwardSize(num_tokens=one.num_tokens, longest=longest_of(one), num_rows=len(one.rows_N))
                for one in slicing.slices
            ]
            self.num_kept_tokens = max(self.num_kept_tokens, slicing.capacity)

    @property
    def num_steps(self) -> int:
        return len(self._steps)

    def num_tokens(self, index: int) -> int:
        forwards, number = self._steps[index]
        return forwards.num_tokens(number)

    def cost(self, index: int) -> float:
        forwards, number = self._steps[index]
        return forwards.cost(number)

    def hidden_states(self, index: int) -> torch.Tensor:
        forwards, number = self._steps[index]
        for part in self._parts:
            if part is not forwards:
                part.drop()  # its steps are done, or have not begun
        return forwards.hidden_states(number)

    def sizes(self) -> list[ForwardSize]:
        return self._sizes

    def drop(self) -> None:
        for part in self._parts:
            part.drop()


class ResponseSteps:
    """As many responses at once as there is room for, at least one, each time with the prompt."""

    num_kept_tokens = 0

    def __init__(self, forwards: Forwards, group: ScoreGroup, costs: ContextCosts, *, max_cost: float) -> None:
        self.responses = range(len(group.responses))
        self._forwards = forwards
        self._parts = [
            replace(group, responses=tuple(group.responses[first:stop]))
            for first, stop in _runs(forwards, group, costs, max_cost=max_cost)
        ]
        self._costs = [_cost_of(part, costs, repeats_prompts=forwards.repeats_prompts) for part in self._parts]
        self._sizes = [forwards.sizes([part]) for part in self._parts]

    @property
    def num_steps(self) -> int:
        return len(self._parts)

    def num_tokens(self, index: int) -> int:
        return sum(size.num_tokens for size in self._sizes[index])

    def cost(self, index: int) -> float:
        return self._costs[index]

    def hidden_states(self, index: int) -> torch.Tensor:
        return self._forwards.hidden_states([self._parts[index]])

    def sizes(self) -> list[ForwardSize]:
        return [size for sizes in self._sizes for size in _with_rows_of_all(sizes)]

    def drop(self) -> None:
        pass


def _with_rows_of_all(sizes: list[ForwardSize]) -> list[ForwardSize]:
    """The forwards of one step. Where there are several the rows of all are held, and held twice while they are
    joined."""
    num_rows = sum(size.num_rows for size in sizes)
    return sizes if len(sizes) == 1 else [replace(size, num_rows=2 * num_rows) for size in sizes]


def _runs(forwards: Forwards, group: ScoreGroup, costs: ContextCosts, *, max_cost: float) -> Iterator[tuple[int, int]]:
    """First and one past the last response of each step."""
    num_prompt = len(group.prompt_ids_P)
    prompt_cost = costs.of_span(0, num_prompt)
    first, cost = 0, prompt_cost
    for index, response in enumerate(group.responses):
        own = costs.of_span(num_prompt, num_prompt + len(response.ids_T))
        more = own + (prompt_cost if forwards.repeats_prompts and index > first else 0.0)
        if index > first and cost + more > max_cost:
            yield first, index
            first, cost, more = index, prompt_cost, own
        cost += more
    yield first, len(group.responses)


def _cost_of(part: ScoreGroup, costs: ContextCosts, *, repeats_prompts: bool) -> float:
    num_repeats = len(part.responses) - 1 if repeats_prompts else 0
    return part.forward_cost(costs) + num_repeats * costs.of_span(0, len(part.prompt_ids_P))
