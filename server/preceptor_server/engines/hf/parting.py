"""Parts a causal language model at its output embedding: the body up to its input, the head from there to the logits.

Nothing here knows an architecture. The body is the model's own forward, stopped short of the vocabulary by a hook. The
head is the model's own forward too, with every module that comes before the output embedding answering what it answered
to one token at load; so whatever scales, caps or casts logits on the way out is computed as the model computes it.
"""

# T = tokens, R = rows, D = size of the output embedding's input, V = vocabulary size

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import cycle
from typing import Any

import torch
from transformers import PreTrainedModel

Outputs = Mapping[torch.nn.Module, list[Any]]  # Any: what a module of some architecture returns
"""What a module returned at each of its calls."""


class UnknownHeadError(ValueError):
    """The model has no output embedding, or does not call it once per forward."""


class PartedModel:
    """Body and head of one model, to be called separately. Both share its weights, but for a head in another dtype."""

    def __init__(self, model: PreTrainedModel, *, head_dtype: torch.dtype) -> None:
        """Runs one token through the model. Raises UnknownHeadError."""
        self._model = model
        self._output = _output_embedding(model)
        outputs, self._input_axes, self.vocabulary_size = _outputs_before(model, self._output)
        self._fed = _FedModule(_in_dtype(self._output, head_dtype))
        self._head_dtype = head_dtype
        stand_ins: dict[torch.nn.Module, torch.nn.Module] = {self._output: self._fed}
        stand_ins |= {module: _Replayed(module, calls) for module, calls in outputs.items()}
        self._head = _with_stand_ins(model, stand_ins)

    def hidden_states(self, token_ids_T: torch.Tensor, **arguments: torch.Tensor) -> torch.Tensor:
        """What the output embedding reads at every token, [T, D]; `arguments` are the forward's own, [1, T] each."""
        captured: list[torch.Tensor] = []

        def capture(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            captured.append(inputs[0])
            return (inputs[0][..., :0, :], *inputs[1:])  # no row is left to be multiplied with the vocabulary

        with _hooked(self._output.register_forward_pre_hook(capture)):
            self._model(input_ids=token_ids_T[None], use_cache=False, **arguments)
        [hidden] = captured
        return hidden.reshape(len(token_ids_T), -1)

    def logits(self, hidden_RD: torch.Tensor) -> torch.Tensor:
        """The head, with all that the architecture does to logits after it, [R, V]."""
        rows = hidden_RD.to(self._head_dtype)
        self._fed.input = rows.reshape(*[1] * (self._input_axes - 2), *rows.shape)
        try:
            logits: torch.Tensor = self._head(input_ids=_one_token(self._model), use_cache=False).logits
        finally:
            self._fed.input = None
        return logits.reshape(len(hidden_RD), -1)

    def take_over_weights(self) -> None:
        """After the model's weights have changed in their places: the head may hold a copy in another dtype."""
        self._fed.original.load_state_dict(self._output.state_dict())


class _StandIn(torch.nn.Module):
    """In the place of another module; other modules may read its attributes as if they were the original's."""

    def __init__(self, original: torch.nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "original", original)  # not a submodule: nothing shall walk into it

    def __getattr__(self, name: str) -> Any:  # Any: an attribute of any module
        return getattr(object.__getattribute__(self, "original"), name)


class _Replayed(_StandIn):
    """Returns what the original returned before, call by call."""

    def __init__(self, original: torch.nn.Module, outputs: list[Any]) -> None:
        super().__init__(original)
        object.__setattr__(self, "outputs", cycle(outputs))

    def forward(self, *_: object, **__: object) -> Any:
        return next(self.outputs)


class _FedModule(_StandIn):
    """Calls the original with `input`, whatever it is given."""

    input: torch.Tensor | None = None

    def forward(self, *_: object, **__: object) -> torch.Tensor:
        assert self.input is not None, "logits() sets it"
        result: torch.Tensor = self.original(self.input)
        return result


def _output_embedding(model: PreTrainedModel) -> torch.nn.Module:
    module = model.get_output_embeddings()
    if not isinstance(module, torch.nn.Module):
        raise UnknownHeadError(f"{type(model).__name__} has no output embedding, from which logits could be computed")
    return module


def _in_dtype(module: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    if all(parameter.dtype == dtype for parameter in module.parameters()):
        return module
    return copy.deepcopy(module).to(dtype)


def _outputs_before(model: PreTrainedModel, output: torch.nn.Module) -> tuple[Outputs, int, int]:
    """What the modules return that the model's own forward calls, to one token, until the output embedding is called;
    the number of axes of what that is given, and the number of logits."""
    outputs: dict[torch.nn.Module, list[Any]] = {}
    axes: list[int] = []
    running: list[torch.nn.Module] = []

    def enter(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        if module is output:
            axes.append(inputs[0].ndim)
        running.append(module)

    def leave(module: torch.nn.Module, _: object, result: object) -> None:
        running.pop()
        if not running and not axes:
            outputs.setdefault(module, []).append(result)

    modules = [module for module in model.modules() if module is not model]
    handles = [module.register_forward_pre_hook(enter) for module in modules]
    handles += [module.register_forward_hook(leave) for module in modules]
    with _hooked(*handles), torch.no_grad():
        logits: torch.Tensor = model(input_ids=_one_token(model), use_cache=False).logits
    if len(axes) != 1:
        raise UnknownHeadError(
            f"{type(model).__name__} calls its output embedding {len(axes)} times in a forward, not once"
        )
    return outputs, axes[0], logits.shape[-1]


def _one_token(model: PreTrainedModel) -> torch.Tensor:
    return torch.zeros((1, 1), dtype=torch.long, device=model.device)


@contextmanager
def _hooked(*handles: torch.utils.hooks.RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _with_stand_ins(module: torch.nn.Module, stand_ins: Mapping[torch.nn.Module, torch.nn.Module]) -> torch.nn.Module:
    """A shallow copy of `module` with others in the place of some of its modules, however deep. All else is shared."""
    twin = copy.copy(module)
    twin._modules = {
        name: child if child is None else stand_ins.get(child) or _with_stand_ins(child, stand_ins)
        for name, child in module._modules.items()
    }
    return twin
