"""Imports and checks a class of the user's own, named by `package.module:Name`: its methods and its options.

Both programs take such classes. This module knows neither what they are for nor which setting names them: messages go
on after "setting='package.module:Name': ", and after "options.".
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Collection, Iterator, Mapping
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model


class InvalidClassError(ValueError):
    """There is no such class, or it is none."""


class InvalidOptionError(ValueError):
    """The constructor has no such option, or does not take its value."""


def import_class(path: str) -> Any:  # Any: whatever class stands there
    """The class at `package.module:Name`, from the current folder or the installed packages."""
    module_name, _, name = path.partition(":")
    if not (module_name and name):
        raise InvalidClassError("write package.module:Name")
    # A user's file stands beside the TOML file, in the folder that the command is called from.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and not f"{module_name}.".startswith(f"{error.name}."):
            raise InvalidClassError(f"{module_name} needs {error.name!r}, which is not there") from error
        raise InvalidClassError(
            f"there is no module {error.name!r} in {os.getcwd()} or among the installed packages"
        ) from error
    except Exception as error:  # a user's module may fail with anything
        raise InvalidClassError(f"importing {module_name} failed: {error!r}") from error
    found = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise InvalidClassError(f"{module_name} has no {name!r}")
        found = getattr(found, part)
    if not inspect.isclass(found):
        raise InvalidClassError(f"{name} is not a class but {type(found).__name__}: name a class")
    return found


def misfit(own_class: type, protocol: type) -> str:
    """Why the class does not do for the protocol; empty where it does."""
    for name, wanted in _methods(protocol):
        found = getattr(own_class, name, None)
        if not callable(found):
            return f"{own_class.__name__} has no method {name}{inspect.signature(wanted)}"
        if problem := _call_problem(found, wanted):
            return f"{own_class.__name__}.{name} cannot be called as {name}{inspect.signature(wanted)}: {problem}"
    return ""


def checked_options(
    own_class: type, options: Mapping[str, Any], *, reserved: Collection[str] = ()
) -> dict[str, Any]:  # Any: as annotated
    """The options as the constructor's annotations take them, those without an annotation as they are. The program
    itself gives the arguments `reserved`: no option may."""
    fields = {name: field for name, field in _parameters(own_class) if name not in reserved}
    if unknown := sorted(set(options) - set(fields)):
        known = ", ".join(fields) or "none"
        raise InvalidOptionError(f"{unknown[0]}: {own_class.__name__} has no such option; it has: {known}")
    model = create_model("Options", __config__=ConfigDict(arbitrary_types_allowed=True), **fields)
    try:
        checked: BaseModel = model(**options)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InvalidOptionError(f"{place}: {first['msg']}; it was {first.get('input')!r}") from error
    return {name: getattr(checked, name) for name in options}


def argument_names(own_class: type) -> set[str]:
    """The keyword arguments that the constructor names."""
    return {name for name, _ in _parameters(own_class)}


def _parameters(
    own_class: type,
) -> Iterator[tuple[str, Any]]:  # Any: pairs of type and default, as pydantic takes them
    constructor = inspect.getattr_static(own_class, "__init__")
    if constructor is object.__init__:
        return
    try:
        hints = get_type_hints(constructor, include_extras=True)
    except (NameError, TypeError):  # an annotation that only a type checker can read
        hints = {}
    for name, parameter in inspect.signature(own_class).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        default = ... if parameter.default is parameter.empty else parameter.default
        yield name, (hints.get(name, Any), default)


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
