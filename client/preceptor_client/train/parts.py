"""Imports and checks the parts that the settings name: built-ins by name, a user's class by `package.module:Name`.

A `Seam` is a place where such a part goes. Each part is one class; the options of its table are the keyword arguments
of its constructor, checked by their annotations. Imports no torch by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from preceptor import own_class
from preceptor.own_class import InvalidClassError, InvalidOptionError, import_class, misfit
from preceptor.settings import Section
from pydantic import Field, JsonValue

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
        try:
            part_class: type[PartT] = import_class(path)
        except InvalidClassError as error:
            raise InvalidPartError(f"{key}={path!r}: {error}") from error
        if problem := misfit(part_class, self.protocol):
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
    try:
        return own_class.checked_options(part_class, options)
    except InvalidOptionError as error:
        raise InvalidPartError(f"{key}.{error}") from error
