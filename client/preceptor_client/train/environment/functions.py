"""Makes a tool of a Python function: its JSON schema, and calls with checked arguments. Knows nothing of episodes."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from preceptor.json_values import Json
from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from preceptor_client.train.data.excerpts import message_of
from preceptor_client.train.errors import InvalidPartError

Function = Callable[..., object]
"""Annotated; its docstring is the tool's description. A coroutine function does too."""


class FunctionTool:
    """One function."""

    def __init__(self, function: Function) -> None:
        """Raises InvalidPartError where its arguments cannot be described by a schema."""
        self.name = getattr(function, "__name__", type(function).__name__)
        self._function = function
        self._arguments = _model_of(function, name=self.name)

    @property
    def schema(self) -> dict[str, Any]:  # Any: a JSON schema
        """As chat templates and the OpenAI API take it."""
        parameters = self._arguments.model_json_schema()
        parameters.pop("title", None)
        parameters.pop("additionalProperties", None)
        for one in parameters.get("properties", {}).values():
            one.pop("title", None)
        parameters.setdefault("properties", {})
        described = inspect.cleandoc(self._function.__doc__ or "")
        return {
            "type": "function",
            "function": {"name": self.name, "description": described, "parameters": parameters},
        }

    async def call(self, arguments: Mapping[str, Json]) -> tuple[str, bool]:
        """What it returns, as a text, and whether it could be called: whatever fails is told in the text, since the
        student chose the arguments."""
        try:
            checked = self._arguments.model_validate(arguments)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            return f"error: {self.name}: {place}: {first['msg']}", False
        given = {name: getattr(checked, name) for name in checked.model_fields_set}
        try:
            result = self._function(**given)
            return _as_text(await result if inspect.isawaitable(result) else result), True
        except Exception as error:  # noqa: BLE001  any function may fail with anything, by arguments of the student
            return f"error: {message_of(error)}", False


def _model_of(function: Function, *, name: str) -> type[BaseModel]:
    fields: dict[str, Any] = {}  # Any: pairs of type and default, as pydantic takes them
    try:
        hints = get_type_hints(function, include_extras=True)
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
                raise InvalidPartError(f"tool {name}: argument {parameter.name!r} has no name in a call: give it one")
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[parameter.name] = (hints.get(parameter.name, Any), default)
        model: type[BaseModel] = create_model(name, __config__=ConfigDict(extra="forbid"), **fields)
        model.model_json_schema()
    except InvalidPartError:
        raise
    except Exception as error:  # annotations may be anything, and so is what pydantic raises of them
        raise InvalidPartError(f"tool {name}: its arguments have no JSON schema: {message_of(error)}") from error
    return model


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
