from __future__ import annotations

import pytest
from preceptor_server.errors import ForbiddenError
from preceptor_server.tenants.rights import require_right, require_teacher
from preceptor_server.tenants.tenant import Right, Tenant


def test_a_tenant_may_do_what_its_rights_say() -> None:
    tenant = Tenant(name="a", rights=frozenset({Right.LOOK}))
    require_right(tenant, Right.LOOK)
    for right in (Right.SCORE, Right.REGISTER, Right.UPDATE_WEIGHTS):
        with pytest.raises(ForbiddenError, match=f"tenant a does not have the right {right}") as raised:
            require_right(tenant, right)
        assert raised.value.reason == "MISSING_RIGHT"


def test_nobody_updates_weights_by_default() -> None:
    with pytest.raises(ForbiddenError, match="update_weights"):
        require_right(Tenant(name="a"), Right.UPDATE_WEIGHTS)


def test_a_tenant_may_use_its_teachers_and_no_other() -> None:
    tenant = Tenant(name="a", teachers=frozenset({"large", "code"}))
    require_teacher(tenant, "large")
    with pytest.raises(ForbiddenError, match=r"may not use the teacher 'small': ask for one of code, large") as raised:
        require_teacher(tenant, "small")
    assert raised.value.reason == "TEACHER_NOT_ALLOWED"


def test_a_tenant_without_a_list_may_use_all_teachers() -> None:
    require_teacher(Tenant(name="a"), "any")
