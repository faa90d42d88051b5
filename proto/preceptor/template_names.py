"""What a chat template reads, found in its source: nothing is run. Knows no messages and no tokenizer.

jinja2.meta.find_undeclared_variables also names what every branch of an `if` sets before it is read: the template would
overwrite a caller's value in silence. This module follows which names are certainly set.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

_GLOBALS = ("raise_exception", "strftime_now")
"""Functions that transformers gives every template, beside jinja2's own."""
_OF_MACROS = ("caller", "varargs", "kwargs")


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateNames:
    """The names in one template."""

    variables: frozenset[str]
    """Variables that it reads where it has not certainly set them itself."""
    keys: frozenset[str]
    """Attributes and texts in its expressions: a key of a message that is not among them is never read by its name."""


class _GenerationBlock(Extension):
    """Reads transformers' `{% generation %}` block: its body, in a scope of its own."""

    tags = {"generation"}  # noqa: RUF012  as jinja2 declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


@lru_cache(maxsize=16)
def names_in(template: str) -> TemplateNames:
    """Raises jinja2.TemplateError where the text is no template."""
    environment = jinja2.Environment(extensions=[_GenerationBlock, "jinja2.ext.loopcontrols"])
    tree = environment.parse(template)
    attributes = {node.attr for node in tree.find_all(nodes.Getattr)}
    texts = {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
    free: set[str] = set()
    _read(tree, {*environment.globals, *_GLOBALS, "self"}, free)
    return TemplateNames(variables=frozenset(free), keys=frozenset(attributes | texts))


def _read(node: nodes.Node, known: set[str], free: set[str]) -> None:
    """Adds to `known` what the node certainly sets for those behind it, and to `free` what it reads that is not."""
    match node:
        case nodes.Name(name=name, ctx="load"):
            if name not in known:
                free.add(name)
        case nodes.Name(name=name):
            known.add(name)
        case nodes.Assign():
            _read(node.node, known, free)
            _read(node.target, known, free)
        case nodes.AssignBlock():
            _read_scope(node.body, known, free)
            _read(node.target, known, free)
        case nodes.If():
            _read_branches(node, known, free)
        case nodes.For():
            _read_loop(node, known, free)
        case nodes.Macro() | nodes.CallBlock():
            _read_macro(node, known, free)
        case nodes.With():
            _read_all(node.values, known, free)
            _read_scope([*node.targets, *node.body], known, free)
        case nodes.Block() | nodes.Scope() | nodes.FilterBlock():
            _read_scope(node.iter_child_nodes(), known, free)
        case _:
            _read_all(node.iter_child_nodes(), known, free)


def _read_all(children: Iterable[nodes.Node], known: set[str], free: set[str]) -> None:
    for child in children:
        _read(child, known, free)


def _read_scope(children: Iterable[nodes.Node], known: set[str], free: set[str]) -> set[str]:
    """What is set inside ends with the scope; returns what was known at its end."""
    inside = set(known)
    _read_all(children, inside, free)
    return inside


def _read_branches(node: nodes.If, known: set[str], free: set[str]) -> None:
    _read(node.test, known, free)
    ends = [_read_scope(node.body, known, free)]
    for other in node.elif_:
        _read(other.test, known, free)
        ends.append(_read_scope(other.body, known, free))
    ends.append(_read_scope(node.else_, known, free))
    known |= set.intersection(*ends)


def _read_loop(node: nodes.For, known: set[str], free: set[str]) -> None:
    _read(node.iter, known, free)
    test = [node.test] if node.test is not None else []
    _read_scope([node.target, *test, *node.body], known | {"loop"}, free)
    _read_scope(node.else_, known, free)


def _read_macro(node: nodes.Macro | nodes.CallBlock, known: set[str], free: set[str]) -> None:
    if isinstance(node, nodes.Macro):
        known.add(node.name)
    else:
        _read(node.call, known, free)
    _read_all(node.defaults, known, free)
    _read_scope([*node.args, *node.body], known | set(_OF_MACROS), free)
