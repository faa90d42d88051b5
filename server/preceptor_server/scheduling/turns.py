"""One level of fair queueing: flows, and whose turn it is, by start tags in virtual time. Knows no entries.

Start-time fair queueing (Goyal, Vin, Cheng 1996). A flow's tag is the virtual time at which its next entry starts. An
entry of cost c moves the tag of a flow of weight w by c / w. The lowest tag is served, and virtual time is the highest
tag served so far. A flow that begins to wait starts at virtual time, or at its own tag if that is later: what it owes
is not forgiven when it runs empty.
"""

from __future__ import annotations

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


FlowT = TypeVar("FlowT", bound=Flow)


class Turns(Generic[FlowT]):
    """Flows that wait, and those that do not and still owe something; at most `max_debtors` of these are remembered."""

    def __init__(self, *, max_debtors: int) -> None:
        self._max_debtors = max_debtors
        self._virtual_time = 0.0
        self._waiting: LazyHeap[FlowT] = LazyHeap()
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

    def first(self) -> FlowT | None:
        """Whose turn it is."""
        return self._waiting.first()

    def join(self, flow: FlowT, *, weight: float) -> None:
        """It begins to wait."""
        if flow in self._debtors:
            self._no_debtor(flow)
        self._flows[flow.name] = flow
        flow.weight = weight
        flow.tag = max(flow.tag, self._virtual_time)
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

    def serve(self, flow: FlowT) -> None:
        """Virtual time reaches the flow's tag."""
        if flow.tag > self._virtual_time:
            self._virtual_time = flow.tag
            self._forget_settled()

    def charge(self, flow: FlowT, cost: float) -> None:
        """Moves its tag: for what it was served, or what that cost beyond the estimate."""
        flow.tag += cost / flow.weight
        flow.order = 0
        if flow in self._waiting:
            self.rejoin(flow)
        elif flow in self._debtors:
            self._debtors.put(flow, (flow.tag, 0.0, 0))

    def leave(self, flow: FlowT) -> None:
        """It waits no more; it is remembered until virtual time has reached its tag."""
        self._waiting.discard(flow)
        flow.order = 0
        if flow.tag <= self._virtual_time:
            del self._flows[flow.name]
            return
        self._debtors.put(flow, (flow.tag, 0.0, 0))
        self._debtors_weight += flow.weight
        if len(self._debtors) > self._max_debtors:
            self._forget(self._first_debtor())

    def pay(self, cost: float) -> None:
        """While nobody waits: what could have been served meanwhile pays the debts, by weight."""
        while cost > 0 and len(self._debtors):
            flow = self._first_debtor()
            needed = (flow.tag - self._virtual_time) * self._debtors_weight
            if needed > cost:
                self._virtual_time += cost / self._debtors_weight
                return
            self._virtual_time = max(self._virtual_time, flow.tag)
            cost -= needed
            self._forget(flow)

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
