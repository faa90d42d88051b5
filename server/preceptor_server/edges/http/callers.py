"""Who asks over HTTP, and whether they may."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends
from starlette.requests import Request

from preceptor_server.callers import Caller
from preceptor_server.edges.http.state import HttpState
from preceptor_server.errors import ServerError
from preceptor_server.tenants.rights import require_right
from preceptor_server.tenants.tenant import Right


def caller_with(right: Right) -> Callable[[Request], Awaitable[Caller]]:
    """For a route's `Depends`. Raises UnauthenticatedError or ForbiddenError. Callers over HTTP are of low weight."""

    # A coroutine, since FastAPI calls a plain function in a thread: wrong keys and refusals are counted in this loop.
    async def caller_of(request: Request) -> Caller:
        state: HttpState = request.app.state.http
        peer = request.client.host if request.client else "unknown"
        caller: Caller | None = None
        try:
            caller = state.identity.caller_of(request.headers, peer=peer, transport="http", weight=state.config.share)
            require_right(caller.tenant, right)
        except ServerError as error:
            if state.refusals is not None:
                peer = state.identity.peer_name(peer)
                path = str(request.scope["route"].path)  # never what a caller made up
                state.refusals.refused(error, caller=caller, peer=peer, method=path, transport="http")
            raise
        return caller

    return caller_of


looking_caller = caller_with(Right.LOOK)
LOOKING = Depends(looking_caller)
ScoringCaller = Annotated[Caller, Depends(caller_with(Right.SCORE))]
LookingCaller = Annotated[Caller, LOOKING]
