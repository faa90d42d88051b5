"""The web application: routes, the page's files, and every error as a problem. Binds no socket."""

from __future__ import annotations

import logging
import mimetypes
from http import HTTPStatus
from pathlib import Path

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from preceptor import __version__
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from preceptor_server.edges.failures import failure_of
from preceptor_server.edges.http.bodies import field_of, invalid
from preceptor_server.edges.http.callers import tell_refusal
from preceptor_server.edges.http.describing import describe
from preceptor_server.edges.http.disconnects import CallerGoneError
from preceptor_server.edges.http.guard import Guard
from preceptor_server.edges.http.looking_routes import looking_routes
from preceptor_server.edges.http.problems import Problem, ProblemError, problem_of
from preceptor_server.edges.http.recorded_routes import recorded_routes
from preceptor_server.edges.http.scoring_routes import scoring_routes
from preceptor_server.edges.http.state import HttpState
from preceptor_server.errors import ServerError

logger = logging.getLogger(__name__)

STATIC = Path(__file__).parent / "static"
_CALLER_GONE = 499
_REVALIDATE = {"Cache-Control": "no-cache"}


def build_app(state: HttpState) -> ASGIApp:
    """The application as it is served: guarded."""
    app: ASGIApp = routed_app(state)
    if state.config.allow_origins:
        app = CORSMiddleware(
            app,
            allow_origins=state.config.allow_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("Content-Type", "Accept"),
        )
    return Guard(
        app,
        bound_host=state.config.host,
        allowed_hosts=state.config.allowed_hosts,
        compare_with=state.config.compare_with,
    )


def routed_app(state: HttpState) -> FastAPI:
    """What is behind the guard."""
    app = FastAPI(
        title="Preceptor",
        version=__version__,
        description="Asks the teacher what it thinks of a prefix. For debugging: trainers use gRPC.",
        docs_url=None,  # both would load their code from elsewhere
        redoc_url=None,
    )
    app.state.http = state
    app.openapi = lambda: describe(app)  # type: ignore[method-assign]  # FastAPI's own way to extend it
    app.include_router(scoring_routes(state))
    app.include_router(looking_routes(state))
    app.include_router(recorded_routes(state))
    _add_page(app)
    _add_handlers(app)
    return app


class _Files(StaticFiles):
    """Files that a browser asks about again each time, so that a new server has a new page."""

    def file_response(self, *args: object, **kwargs: object) -> Response:
        response = super().file_response(*args, **kwargs)  # type: ignore[arg-type]  # passed on as they come
        response.headers.update(_REVALIDATE)
        return response


def _add_page(app: FastAPI) -> None:
    # What a machine's own table says of these differs, and a browser refuses a script of another type.
    for media_type, suffix in (("text/javascript", ".js"), ("text/css", ".css"), ("image/svg+xml", ".svg")):
        mimetypes.add_type(media_type, suffix)
    files = _Files(directory=STATIC)
    app.mount("/static", files)

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page(request: Request) -> Response:
        return await files.get_response("index.html", request.scope)


def _add_handlers(app: FastAPI) -> None:
    app.add_exception_handler(ProblemError, _on_problem)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_invalid_parameter)
    app.add_exception_handler(CallerGoneError, _on_caller_gone)
    app.add_exception_handler(ServerError, _on_error)
    app.add_exception_handler(Exception, _on_error)


async def _on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, ProblemError)
    said = error.__cause__ if isinstance(error.__cause__, ServerError) else error
    if error.problem.status is not HTTPStatus.NOT_FOUND or said is not error:  # that nothing is there is an answer
        tell_refusal(request, said)
    return error.problem.to_response()


async def _on_http_exception(_: Request, error: Exception) -> Response:
    """What the router says: no such path, no such method."""
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    problem = Problem(status=status, reason=status.name, detail=str(error.detail), headers=error.headers or {})
    return problem.to_response()


async def _on_invalid_parameter(request: Request, error: Exception) -> Response:
    """Of the path or the query."""
    assert isinstance(error, RequestValidationError)
    mistake = error.errors()[0]
    field = field_of(mistake["loc"][1:])
    return await _on_problem(request, invalid(f"{field}: {mistake['msg']}", field=field))


async def _on_caller_gone(_: Request, __: Exception) -> Response:
    return Response(status_code=_CALLER_GONE)


async def _on_error(request: Request, error: Exception) -> Response:
    tell_refusal(request, error)
    return problem_of(failure_of(error)).to_response()
