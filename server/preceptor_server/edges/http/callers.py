"""Who asks over HTTP, and whether they may."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import Depends
from starlette.requests import Request

from preceptor_server.callers import Caller
from preceptor_server.edges.http.state import HttpState
from preceptor_server.tenants.rights import require_right
from preceptor_server.tenants.tenant import Right


def caller_with(right: Right) -> Callable[[Request], Caller]:
    """For a route's `Depends`. Raises UnauthenticatedError or ForbiddenError. Callers over HTTP are of low weight."""

    def caller_of(request: Request) -> Caller:
        state: HttpState = request.app.state.http
        caller = state.identity.caller_of(
            request.headers,
            peer=request.client.host if request.client else "unknown",
            transport="http",
            weight=state.config.share,
        )
        require_right(caller.tenant, right)
        return caller

    return caller_of


LOOKING = Depends(caller_with(Right.LOOK))
ScoringCaller = Annotated[Caller, Depends(caller_with(Right.SCORE))]
LookingCaller = Annotated[Caller, LOOKING]
