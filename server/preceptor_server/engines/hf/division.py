"""One group, computed slice by slice in the engine's thread. What it holds between slices counts against a budget."""

from __future__ import annotations

import torch

from preceptor_server.engines.hf.causal_lm import LoadedModel
from preceptor_server.engines.hf.head import HeadRun
from preceptor_server.engines.hf.out_of_memory import out_of_memory_told
from preceptor_server.engines.hf.steps import Steps
from preceptor_server.engines.hf.thread import EngineThread
from preceptor_server.errors import EngineUnavailableError
from preceptor_server.types import GroupColumns


class KeptBudget:
    """Holds the open divisions together below `max_bytes`: those that were computed longest ago drop what they kept,
    and compute it again when they go on. Used in the engine's thread alone."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._holders: dict[Steps, int] = {}
        """Bytes that each holds; in the order of their last use."""

    def use(self, steps: Steps, *, num_bytes: int) -> None:
        """Makes room for what `steps` holds from now on."""
        self._holders.pop(steps, None)
        while self._holders and sum(self._holders.values()) + num_bytes > self._max_bytes:
            oldest = next(iter(self._holders))
            oldest.drop()
            del self._holders[oldest]
        self._holders[steps] = num_bytes

    def forget(self, steps: Steps) -> None:
        """It holds nothing any more."""
        steps.drop()
        self._holders.pop(steps, None)


class HfDivision:
    """Of one group. Its numbers do not depend on what runs between its slices."""

    def __init__(
        self,
        steps: Steps,
        run: HeadRun,
        *,
        model: LoadedModel,
        num_bytes: int,
        budget: KeptBudget,
        thread: EngineThread,
    ) -> None:
        """`run` is of the group with its responses in the order of the steps; `num_bytes` are kept between slices."""
        self._model: LoadedModel | None = model
        self._steps: Steps | None = steps
        self._run: HeadRun | None = run
        self._num_bytes = num_bytes
        self._budget = budget
        self._thread = thread
        self._began_at: int | None = None
        self._next = 0

    @property
    def next_tokens(self) -> int:
        if self._steps is None or self._next == self._steps.num_steps:
            return 0
        return self._steps.num_tokens(self._next)

    @property
    def next_cost(self) -> float:
        if self._steps is None or self._next == self._steps.num_steps:
            return 0.0
        return self._steps.cost(self._next)

    async def advance(self) -> GroupColumns | None:
        return await self._thread.run(self.advance_here)

    def close(self) -> None:
        try:
            self._thread.submit(self.free)  # after the slice that may be running
        except EngineUnavailableError:  # the engine is closed, and its thread has ended
            self.free()

    @torch.inference_mode()
    def advance_here(self) -> GroupColumns | None:
        """As `advance`, in the engine's thread."""
        assert self._steps is not None, "a closed division is not advanced"
        assert self._run is not None, "it ends with its steps"
        assert self._model is not None, "and so does this"
        assert self._next < self._steps.num_steps, "neither is one that is done"
        try:
            self._check_weights(self._model.generation)
            self._budget.use(self._steps, num_bytes=self._num_bytes)
            with out_of_memory_told():
                self._run.add(self._steps.hidden_states(self._next))
        except BaseException:
            self.free()
            raise
        self._next += 1
        if self._next < self._steps.num_steps:
            return None
        [columns] = self._run.finish()
        place = {response: index for index, response in enumerate(self._steps.responses)}
        self.free()
        return tuple(columns[place[response]] for response in range(len(columns)))

    def _check_weights(self, generation: int) -> None:
        """Half of a group by the old weights and half by the new ones would be nobody's opinion."""
        if self._began_at is None:
            self._began_at = generation
        if self._began_at != generation:
            said = "the weights changed while the group was scored: ask again"
            raise EngineUnavailableError(said, retry_after_seconds=0.0)

    def free(self) -> None:
        """As `close`, in the engine's thread or after its end."""
        if self._steps is not None:
            self._budget.forget(self._steps)
        self._steps = self._run = self._model = None
