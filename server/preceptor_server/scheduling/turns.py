"""One level of fair queueing: flows, and whose turn it is, by start tags in virtual time. Knows no entries.

Start-time fair queueing (Goyal, Vin, Cheng 1996). A flow's tag is the virtual time at which its next entry starts. An
entry of cost c moves the tag of a flow of weight w by c / w, and the lowest tag is served. A flow that begins to wait
starts at virtual time, or at its own tag if that is later: what it owes is not forgiven when it runs empty.

Virtual time is the highest tag served, so that a newcomer is next, or nearly. By that alone it would stand still, and
everybody else starve, while one new name after the other starts at it. So it also follows the virtual time of the fluid
system that all of this stands for, where a cost of c moves it by c / W, W being the weight of all that wait or still
owe something: at a distance of the largest entry over their mean weight. The fluid system's time is the mean of all
tags by weight, and the lowest tag is no further behind it than that.
"""

from __future__ import annotations

import math
from typing import Generic, TypeVar

from preceptor_server.scheduling.lazy_heap import LazyHeap


class Flow:
    """What waits in turn with others, by name. Its tag is kept by `Turns`."""

    __slots__ = ("name", "order", "priority", "tag", "weight")

    def __init__(self, name: str) -> None:
        self.name = name
        self.weight = 1.0
        self.tag = 0.0
        self.order = 0
        """Among flows of equal tags, whose turn came first."""
        self.priority = 0
        """Of its next entry: higher first, whatever the tags say."""


_FADING = 0.99
"""Of the largest cost, with each entry that is served."""

FlowT = TypeVar("FlowT", bound=Flow)


class Turns(Generic[FlowT]):
    """Flows that wait, and those that do not and still owe something; at most `max_debtors` of these are remembered."""

    def __init__(self, *, max_debtors: int) -> None:
        self._max_debtors = max_debtors
        self._virtual_time = 0.0
        self._fluid_time = 0.0
        self._largest_cost = 0.0
        """Of late."""
        self._ceiling = math.inf
        """Tags served do not move virtual time beyond this: the lowest tag of what is passed over for the moment."""
        self._waiting: LazyHeap[FlowT] = LazyHeap()
        self._waiting_weight = 0.0
        self._num_waiting = 0
        """With those that stand aside."""
        self._debtors: LazyHeap[FlowT] = LazyHeap()
        self._debtors_weight = 0.0
        self._flows: dict[str, FlowT] = {}
        self._num_turns = 0

    def __len__(self) -> int:
        """Flows that are remembered."""
        return len(self._flows)

    def get(self, name: str) -> FlowT | None:
        """The flow of that name, if it waits or owes something."""
        return self._flows.get(name)

    @property
    def is_empty(self) -> bool:
        """Whether no flow waits, but for those that stand aside."""
        return not len(self._waiting)

    def first(self) -> FlowT | None:
        """Whose turn it is."""
        return self._waiting.first()

    def join(self, flow: FlowT, *, weight: float) -> None:
        """It begins to wait."""
        if flow in self._debtors:
            self._no_debtor(flow)
        assert weight > 0, "weights are checked where they are set"
        self._flows[flow.name] = flow
        flow.weight = weight
        flow.tag = max(flow.tag, self._virtual_time)
        self._num_waiting += 1
        self._waiting_weight += weight
        self.rejoin(flow)

    def rejoin(self, flow: FlowT) -> None:
        """It stands in turn again where it did: after `stand_aside`, and where its priority has changed."""
        if not flow.order:
            self._num_turns += 1
            flow.order = self._num_turns
        self._waiting.put(flow, (-flow.priority, flow.tag, flow.order))

    def stand_aside(self, flow: FlowT) -> None:
        """It keeps its tag and its order, and is not first until it rejoins."""
        self._waiting.discard(flow)

    def pass_over(self, flow: FlowT) -> None:
        """Others are served before an entry of the flow although it is its turn, until `pass_nobody_over`."""
        self._ceiling = min(self._ceiling, flow.tag)

    def pass_nobody_over(self) -> None:
        self._ceiling = math.inf

    def serve(self, flow: FlowT, cost: float) -> None:
        """An entry of a flow that waits is served."""
        self._largest_cost = max(cost, _FADING * self._largest_cost)
        lag = self._largest_cost * (self._num_waiting + len(self._debtors)) / self._weight
        self._virtual_time = max(self._virtual_time, min(flow.tag, self._ceiling), self._fluid_time - lag)
        self._forget_settled()
        self._fluid_time = max(self._fluid_time, self._virtual_time) + cost / self._weight
        self.charge(flow, cost)

    def charge(self, flow: FlowT, cost: float) -> None:
        """Moves the tag of a flow that is remembered: for what it is served, or what that cost beyond the estimate."""
        flow.tag += cost / flow.weight
        flow.order = 0
        if flow in self._waiting:
            self.rejoin(flow)
        elif flow in self._debtors:
            self._debtors.put(flow, (flow.tag, 0.0, 0))
            self._forget_settled()  # where the cost was negative

    def indebt(self, flow: FlowT, cost: float, *, weight: float) -> None:
        """The same for a flow that is not remembered."""
        self.join(flow, weight=weight)
        self.charge(flow, max(0.0, cost))
        self.leave(flow)

    def leave(self, flow: FlowT) -> None:
        """It waits no more; it is remembered until virtual time has reached its tag."""
        self._waiting.discard(flow)
        self._num_waiting -= 1
        self._waiting_weight = self._waiting_weight - flow.weight if self._num_waiting else 0.0
        flow.order = 0
        if flow.tag <= self._virtual_time:
            del self._flows[flow.name]
            return
        self._debtors.put(flow, (flow.tag, 0.0, 0))
        self._debtors_weight += flow.weight
        if len(self._debtors) > self._max_debtors:
            self._forget(self._first_debtor())

    def pay(self, cost: float) -> None:
        """While nobody waits and nothing is computed: what could have been pays the debts, by weight."""
        while cost > 0 and len(self._debtors):
            flow = self._first_debtor()
            needed = (flow.tag - self._virtual_time) * self._debtors_weight
            if needed > cost:
                self._virtual_time += cost / self._debtors_weight
                return
            self._virtual_time = max(self._virtual_time, flow.tag)
            cost -= needed
            self._forget(flow)

    @property
    def _weight(self) -> float:
        """Of all that wait or still owe something."""
        return self._waiting_weight + self._debtors_weight

    def _forget_settled(self) -> None:
        while len(self._debtors) and (flow := self._first_debtor()).tag <= self._virtual_time:
            self._forget(flow)

    def _first_debtor(self) -> FlowT:
        flow = self._debtors.first()
        assert flow is not None, "asked only where there are some"
        return flow

    def _forget(self, flow: FlowT) -> None:
        self._no_debtor(flow)
        del self._flows[flow.name]

    def _no_debtor(self, flow: FlowT) -> None:
        self._debtors.discard(flow)
        self._debtors_weight = self._debtors_weight - flow.weight if len(self._debtors) else 0.0
