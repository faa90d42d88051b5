"""Whether a tenant may do what it asks for."""

from __future__ import annotations

from preceptor_server.errors import ForbiddenError
from preceptor_server.tenants.tenant import Right, Tenant

MISSING_RIGHT = "MISSING_RIGHT"
TEACHER_NOT_ALLOWED = "TEACHER_NOT_ALLOWED"


def require_right(tenant: Tenant, right: Right) -> None:
    """Raises ForbiddenError where the tenant does not have it."""
    if right not in tenant.rights:
        raise ForbiddenError(
            f"tenant {tenant.name} does not have the right {right.value}: ask whoever runs this server to add it to "
            "the tenant's rights",
            reason=MISSING_RIGHT,
        )


def require_teacher(tenant: Tenant, teacher: str) -> None:
    """Raises ForbiddenError where the tenant may not use the teacher of this name, whether there is one or not."""
    if tenant.teachers is not None and teacher not in tenant.teachers:
        raise teacher_not_allowed(tenant, teacher)


def teacher_not_allowed(tenant: Tenant, teacher: str) -> ForbiddenError:
    """Of a tenant with a list of teachers. `teacher` is the name that it asked for; empty: it named none, and the
    server hosts none of its list."""
    wanted = f"the teacher {teacher[:128]!r}" if teacher else "any teacher that this server hosts"
    return ForbiddenError(
        f"tenant {tenant.name} may not use {wanted}: ask for one of {', '.join(sorted(tenant.teachers or ()))}, or "
        "have it added to the tenant's teachers",
        reason=TEACHER_NOT_ALLOWED,
    )
