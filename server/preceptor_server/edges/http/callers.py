"""Who asks over HTTP, and whether they may: by their keys, and by their addresses where there are none."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends
from starlette.requests import Request

from preceptor_server.callers import Caller
from preceptor_server.edges.http.state import HttpState
from preceptor_server.tenants.rights import require_right
from preceptor_server.tenants.tenant import Right


def caller_with(right: Right) -> Callable[[Request], Awaitable[Caller]]:
    """For a route's `Depends`. Raises UnauthenticatedError or ForbiddenError. Callers over HTTP are of low weight."""

    # A coroutine, since FastAPI calls a plain function in a thread: wrong keys are counted in this loop.
    async def caller_of(request: Request) -> Caller:
        state: HttpState = request.app.state.http
        caller = state.identity.caller_of(
            request.headers, peer=_peer_of(request), transport="http", weight=state.config.share
        )
        request.state.caller = caller  # for `tell_refusal`
        require_right(caller.tenant, right)
        return caller

    return caller_of


def tell_refusal(request: Request, error: Exception) -> None:
    """Has a call that ends with `error` counted, and logged where it is one of access, as gRPC's interceptor does."""
    state: HttpState = request.app.state.http
    route = request.scope.get("route")
    if state.refusals is None or route is None:
        return
    caller: Caller | None = getattr(request.state, "caller", None)
    peer = state.identity.peer_name(_peer_of(request))
    # The route's path is never what a caller made up.
    state.refusals.refused(error, caller=caller, peer=peer, method=str(route.path), transport="http")


def _peer_of(request: Request) -> str:
    return request.client.host if request.client else "unknown"


looking_caller = caller_with(Right.LOOK)
LOOKING = Depends(looking_caller)
ScoringCaller = Annotated[Caller, Depends(caller_with(Right.SCORE))]
LookingCaller = Annotated[Caller, LOOKING]
