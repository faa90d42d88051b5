"""JSON within bounds: what is accepted, what is refused, and that both directions agree."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import pytest
from preceptor.json_values import MAX_JSON_CHARACTERS, MAX_JSON_DEPTH, object_text, plain_object, read_object


def nested(depth: int) -> str:
    return '{"a": ' * (depth - 1) + "{}" + "}" * (depth - 1)


def test_an_object_is_read_with_its_keys_in_their_order() -> None:
    read = read_object('{"b": [1, 2.5, null, true], "a": {"z": "ø\\u00f8"}}')
    assert list(read) == ["b", "a"]
    assert read == {"b": [1, 2.5, None, True], "a": {"z": "øø"}}
    assert isinstance(read["b"], list)
    assert read["b"][3] is True


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not JSON: Expecting value"),
        ("{", "not JSON: "),
        ('{"a": 1} x', "not JSON: Extra data"),
        ("{'a': 1}", "not JSON: "),
        ('{"a": NaN}', "not JSON: it holds NaN"),
        ('{"a": -Infinity}', "not JSON: it holds -Infinity"),
        ('{"a": 1e999}', "holds inf, a number that JSON does not have"),
        ('{"a": %s}' % ("9" * 5000), "not JSON: "),
        ("[1]", "holds a list, must be a JSON object"),
        ('"a"', "holds a str, must be a JSON object"),
        ("null", "holds a NoneType, must be a JSON object"),
        ('{"a": "\\ud800"}', "half of a surrogate pair"),
        ('{"\\udfff": 1}', "half of a surrogate pair"),
        ("[" * 100_000, "nested deeper than 64 levels"),
        (nested(MAX_JSON_DEPTH + 1), "nested deeper than 64 levels"),
        ('{"a": "%s"}' % ("x" * MAX_JSON_CHARACTERS), "has 1,048,585 characters, more than 1,048,576"),
    ],
    ids=range(16),
)
def test_a_text_that_is_none_is_refused(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_object(text)


def test_the_bounds_themselves_are_allowed() -> None:
    assert object_text(read_object(nested(MAX_JSON_DEPTH))) == nested(MAX_JSON_DEPTH)
    longest = '{"a": "%s"}' % ("x" * (MAX_JSON_CHARACTERS - 9))
    assert len(longest) == MAX_JSON_CHARACTERS
    assert object_text(read_object(longest)) == longest


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"a": float("nan")}, "holds nan, a number"),
        ({"a": {1: 2}}, "has the key 1, which is a int"),
        ({"a": {1, 2}}, "holds a set, which JSON does not have"),
        ({"a": b"x"}, "holds a bytes, which"),
        ({"a": "\udfff"}, "half of a surrogate pair"),
        ([1], "holds a list, must be a JSON object"),
        ({"a": "x" * MAX_JSON_CHARACTERS}, "characters as JSON, more than"),
    ],
)
def test_a_value_that_is_no_json_is_refused(value: Any, says: str) -> None:  # Any: what a caller may get wrong
    with pytest.raises(ValueError, match=says):
        object_text(value)


def test_an_object_that_holds_itself_is_refused() -> None:
    round_and_round: dict[str, Any] = {}
    round_and_round["a"] = [round_and_round]
    with pytest.raises(ValueError, match="nested deeper"):
        object_text(round_and_round)


def test_plain_objects_are_copies_in_dicts_and_lists() -> None:
    inner: dict[str, tuple[int, ...]] = {"x": (1, 2)}
    plain = plain_object(MappingProxyType({"a": MappingProxyType(inner)}))
    assert plain == {"a": {"x": [1, 2]}}
    assert type(plain["a"]) is dict
    inner["x"] = (3,)
    assert plain == {"a": {"x": [1, 2]}}


def test_text_beyond_ascii_survives_both_ways() -> None:
    value = {"city": "Tromsø 你好 😀", "é": "\u2028"}
    assert read_object(object_text(value)) == value
