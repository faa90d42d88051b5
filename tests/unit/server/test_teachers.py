"""The map of teachers: who finds which, and how one is replaced while calls go on."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from preceptor_server.errors import EngineUnavailableError, ForbiddenError, InvalidRequestError, UnknownTeacherError
from preceptor_server.hosted import HostedTeacher
from preceptor_server.teachers import Teachers
from preceptor_server.tenants.tenant import Tenant

from tests.unit.server.hosting import hosted_teacher

ANYONE = Tenant(name="anyone")


def named(name: str) -> HostedTeacher:
    return replace(hosted_teacher(), name=name)


def test_the_only_one_needs_no_name_and_of_several_one_is_to_be_named() -> None:
    a, b = named("a"), named("b")
    assert Teachers([a]).find("", tenant=ANYONE) is a
    both = Teachers([b, a])
    assert both.find("b", tenant=ANYONE) is b
    with pytest.raises(InvalidRequestError, match="teacher: is empty, and there are several: 'a', 'b'"):
        both.find("", tenant=ANYONE)
    with pytest.raises(UnknownTeacherError, match="'c' is not hosted here: ask for 'a', 'b'"):
        both.find("c", tenant=ANYONE)


def test_a_tenant_finds_those_that_it_may_use() -> None:
    both, tenant = Teachers([named("a"), named("b")]), Tenant(name="team", teachers=frozenset({"b"}))
    assert both.find("", tenant=tenant).name == "b"
    for name in ("a", "c"):  # whether there is one of that name is not told
        with pytest.raises(ForbiddenError, match=f"may not use the teacher '{name}': ask for one of b") as caught:
            both.find(name, tenant=tenant)
        assert caught.value.reason == "TEACHER_NOT_ALLOWED"


def test_a_tenant_none_of_whose_teachers_is_hosted_is_refused_without_a_name_too() -> None:
    teachers, tenant = Teachers([named("a")]), Tenant(name="team", teachers=frozenset({"b"}))
    told = "tenant team may not use any teacher that this server hosts: ask for one of b"
    with pytest.raises(ForbiddenError, match=told) as caught:
        teachers.find("", tenant=tenant)
    assert caught.value.reason == "TEACHER_NOT_ALLOWED"
    # What is loaded for others is not told either; what is loaded for this tenant is to be asked for later.
    teachers.expect(["c"])
    with pytest.raises(ForbiddenError, match=told):
        teachers.find("", tenant=tenant)
    teachers.expect(["b", "c"])
    with pytest.raises(EngineUnavailableError, match="being loaded"):
        teachers.find("", tenant=tenant)


def test_a_server_without_teachers_says_so() -> None:
    with pytest.raises(InvalidRequestError, match="teacher: is empty, and this server hosts none"):
        Teachers().find("", tenant=ANYONE)


def test_one_that_is_being_loaded_is_to_be_asked_later() -> None:
    teachers = Teachers([named("a")])
    teachers.expect(["b"])
    with pytest.raises(EngineUnavailableError, match="being loaded"):
        teachers.find("b", tenant=ANYONE)
    teachers.put(named("b"))
    assert teachers.find("b", tenant=ANYONE).name == "b"


async def test_a_call_keeps_its_teacher_whatever_replaces_it() -> None:
    old, new = named("a"), named("a")
    teachers = Teachers([old])
    with teachers.use("a", tenant=ANYONE) as used:
        assert teachers.put(new) is old
        assert used is old
        assert teachers.find("a", tenant=ANYONE) is new
        unused = asyncio.create_task(teachers.unused(old))
        await asyncio.sleep(0)
        assert not unused.done()
    await asyncio.wait_for(unused, 5)


async def test_one_that_was_taken_out_is_not_found_and_is_unused_once_its_calls_end() -> None:
    teachers = Teachers([named("a"), named("b")])
    with teachers.use("a", tenant=ANYONE) as used:
        assert teachers.take("a") is used
        with pytest.raises(UnknownTeacherError):
            teachers.find("a", tenant=ANYONE)
    await asyncio.wait_for(teachers.unused(used), 5)
    assert (teachers.names, teachers.take("a")) == (("b",), None)
