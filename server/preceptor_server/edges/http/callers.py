"""Who asks over HTTP, and whether they may."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends
from starlette.requests import Request

from preceptor_server.callers import Caller
from preceptor_server.edges.http.state import HttpState
from preceptor_server.errors import ForbiddenError, ServerError
from preceptor_server.hosted import HostedTeacher
from preceptor_server.tenants.rights import require_right
from preceptor_server.tenants.tenant import Right


def caller_with(right: Right) -> Callable[[Request], Awaitable[Caller]]:
    """For a route's `Depends`. Raises UnauthenticatedError or ForbiddenError. Callers over HTTP are of low weight."""

    # A coroutine, since FastAPI calls a plain function in a thread: wrong keys and refusals are counted in this loop.
    async def caller_of(request: Request) -> Caller:
        state: HttpState = request.app.state.http
        caller: Caller | None = None
        try:
            caller = state.identity.caller_of(
                request.headers, peer=_peer_of(request), transport="http", weight=state.config.share
            )
            require_right(caller.tenant, right)
        except ServerError as error:
            _tell(request, error, caller=caller)
            raise
        return caller

    return caller_of


def teacher_for(request: Request, name: str, caller: Caller) -> HostedTeacher:
    """The teacher of that name, empty for the only one. Raises as `HttpState.teacher`; that the caller may not use it
    is told to the server too."""
    state: HttpState = request.app.state.http
    try:
        return state.teacher(name, caller)
    except ForbiddenError as error:
        _tell(request, error, caller=caller)
        raise


def _tell(request: Request, error: ServerError, *, caller: Caller | None) -> None:
    """Has a refusal of access counted and logged."""
    state: HttpState = request.app.state.http
    if state.refusals is not None:
        peer = state.identity.peer_name(_peer_of(request))
        path = str(request.scope["route"].path)  # never what a caller made up
        state.refusals.refused(error, caller=caller, peer=peer, method=path, transport="http")


def _peer_of(request: Request) -> str:
    return request.client.host if request.client else "unknown"


looking_caller = caller_with(Right.LOOK)
LOOKING = Depends(looking_caller)
ScoringCaller = Annotated[Caller, Depends(caller_with(Right.SCORE))]
LookingCaller = Annotated[Caller, LOOKING]
