"""Imports and checks the parts that the settings name: built-ins by name, a user's class by `package.module:Name`.

A `Seam` is a place where such a part goes. Each part is one class; the options of its table are the keyword arguments
of its constructor, checked by their annotations. Imports no torch by itself.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, get_type_hints

from preceptor.settings import Section
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, create_model

from preceptor_client.errors import PreceptorError
from preceptor_client.train.errors import InvalidPartError

PartT = TypeVar("PartT")
Options = Mapping[str, JsonValue]


class PartConfig(Section):
    """A part: which class, and its options."""

    kind: str = Field(min_length=1)
    """Name of a built-in part, or package.module:Name of a class of your own."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """Its options: the keyword arguments of its constructor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seam(Generic[PartT]):
    """A place of the trainer that takes a part."""

    what: str
    """What stands there, for messages: "an objective"."""
    protocol: type
    """The methods that a part must have, and how they are called."""
    builtins: Mapping[str, str]
    """Name to package.module:Name of the parts that come with the trainer."""

    def find(self, kind: str, *, key: str) -> type[PartT]:
        """The class. Raises InvalidPartError, which begins with `key`, where there is none or it does not fit."""
        path = self.builtins.get(kind, kind)
        if ":" not in path:
            known = ", ".join(self.builtins) or "none is built in"
            raise InvalidPartError(
                f"{key}={kind!r} is not {self.what}: write one of {known}, or package.module:Name of your class"
            )
        part_class: type[PartT] = _imported(path, key=key)
        if problem := _misfit(part_class, self.protocol):
            raise InvalidPartError(f"{key}={kind!r} is not {self.what}: {problem}")
        return part_class

    def make(self, kind: str, options: Options | None = None, *, key: str) -> PartT:
        """The part. Raises InvalidPartError as `find` does, and where an option is unknown or refused; `key` is the
        setting that names the part, such as "objective.kind", beside which its options stand."""
        return self.maker(kind, options, key=key)()

    def maker(self, kind: str, options: Options | None = None, *, key: str) -> Callable[[], PartT]:
        """Makes a new part at each call, as `make` does; the class and its options are looked up and checked once, now.
        No two parts share a value of their options."""
        part_class = self.find(kind, key=key)
        given = checked_options(part_class, options or {}, key=options_key(key))

        def make() -> PartT:
            try:
                return part_class(**deepcopy(given))
            except InvalidPartError as error:
                raise InvalidPartError(f"{key}={kind!r}: {error}") from error
            except (TypeError, ValueError) as error:
                raise InvalidPartError(f"{options_key(key)}: {kind} refuses them: {error}") from error
            except PreceptorError:
                raise
            except Exception as error:  # a user's constructor may fail with anything
                raise InvalidPartError(f"{key}={kind!r}: its constructor failed: {error!r}") from error

        return make


def options_key(key: str) -> str:
    """Where the options of the part stand that `key` names: objective.kind has objective.options, and
    objective.support has objective.support_options."""
    return f"{key.removesuffix('kind')}options" if key.endswith("kind") else f"{key}_options"


def checked_options(part_class: type, options: Options, *, key: str) -> dict[str, Any]:  # Any: as annotated
    """The options as the constructor's annotations take them, those without an annotation as they are."""
    fields = dict(_parameters(part_class))
    if unknown := sorted(set(options) - set(fields)):
        known = ", ".join(fields) or "none"
        raise InvalidPartError(f"{key}.{unknown[0]}: {part_class.__name__} has no such option; it has: {known}")
    model = create_model("Options", __config__=ConfigDict(arbitrary_types_allowed=True), **fields)
    try:
        checked: BaseModel = model(**options)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InvalidPartError(f"{key}.{place}: {first['msg']}; it was {first.get('input')!r}") from error
    return {name: getattr(checked, name) for name in options}


def _parameters(
    part_class: type,
) -> Iterator[tuple[str, Any]]:  # Any: pairs of type and default, as pydantic takes them
    constructor = inspect.getattr_static(part_class, "__init__")
    if constructor is object.__init__:
        return
    try:
        hints = get_type_hints(constructor, include_extras=True)
    except (NameError, TypeError):  # an annotation that only a type checker can read
        hints = {}
    for name, parameter in inspect.signature(part_class).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        default = ... if parameter.default is parameter.empty else parameter.default
        yield name, (hints.get(name, Any), default)


def _imported(path: str, *, key: str) -> Any:  # Any: whatever stands there
    module_name, _, name = path.partition(":")
    if not (module_name and name):
        raise InvalidPartError(f"{key}={path!r}: write package.module:Name")
    # A user's file stands beside the TOML file, in the folder that the command is called from.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and not f"{module_name}.".startswith(f"{error.name}."):
            raise InvalidPartError(f"{key}={path!r}: {module_name} needs {error.name!r}, which is not there") from error
        raise InvalidPartError(
            f"{key}={path!r}: there is no module {error.name!r} in {os.getcwd()} or among the installed packages"
        ) from error
    except Exception as error:  # a user's module may fail with anything
        raise InvalidPartError(f"{key}={path!r}: importing {module_name} failed: {error!r}") from error
    found = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise InvalidPartError(f"{key}={path!r}: {module_name} has no {name!r}")
        found = getattr(found, part)
    if not inspect.isclass(found):
        raise InvalidPartError(f"{key}={path!r}: {name} is not a class but {type(found).__name__}: name a class")
    return found


def _misfit(part_class: type, protocol: type) -> str:
    """Why the class does not do for the protocol; empty where it does."""
    for name, wanted in _methods(protocol):
        found = getattr(part_class, name, None)
        if not callable(found):
            return f"{part_class.__name__} has no method {name}{inspect.signature(wanted)}"
        if problem := _call_problem(found, wanted):
            return f"{part_class.__name__}.{name} cannot be called as {name}{inspect.signature(wanted)}: {problem}"
    return ""


def _methods(protocol: type) -> Iterator[tuple[str, Any]]:
    """Its own and inherited ones, without those that are optional: a protocol names them in `OPTIONAL`."""
    optional = getattr(protocol, "OPTIONAL", ())
    for name in dir(protocol):
        member = inspect.getattr_static(protocol, name)
        if inspect.isfunction(member) and (not name.startswith("_") or name == "__call__") and name not in optional:
            yield name, member


def _call_problem(found: Any, wanted: Any) -> str:
    parameters = list(inspect.signature(wanted).parameters.values())
    positional = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    named = {one.name: None for one in parameters if one.kind is one.KEYWORD_ONLY}
    try:
        inspect.signature(found).bind(*[None] * len(positional), **named)
    except TypeError as error:
        return str(error)
    except ValueError:  # a builtin without a signature
        return ""
    return ""
