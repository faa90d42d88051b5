"""What /openapi.json says beyond what the routes say by themselves: bodies that are read by hand, and problems."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from preceptor_server.edges.http.answers import ProblemDetails
from preceptor_server.edges.http.problems import MEDIA_TYPE
from preceptor_server.edges.http.requests import AlignRequest, TopkRequest

_EVERYWHERE = (HTTPStatus.UNAUTHORIZED.value, HTTPStatus.FORBIDDEN.value, HTTPStatus.MISDIRECTED_REQUEST.value)
"""What any route may answer: who asks, whether they may, and by which name."""

Plain = dict[str, Any]  # Any: whatever JSON holds
_REF = "#/components/schemas/{model}"


def problems(*statuses: int) -> dict[int | str, Plain]:
    """For a route's `responses`."""
    schema = {"$ref": _REF.format(model=ProblemDetails.__name__)}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: {"schema": schema}}}
        for status in (*statuses, *_EVERYWHERE)
    }


def body_of(model: type[BaseModel]) -> Plain:
    """For a route's `openapi_extra`."""
    schema = {"$ref": _REF.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def describe(app: FastAPI) -> Plain:
    """The whole description."""
    if not app.openapi_schema:
        description = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        _, hand_read = models_json_schema(
            [(TopkRequest, "validation"), (AlignRequest, "validation"), (ProblemDetails, "serialization")],
            ref_template=_REF,
        )
        schemas = description["components"]["schemas"]
        schemas.update(hand_read["$defs"])
        # FastAPI's own way to tell of mistakes, which are problems here.
        for name in ("HTTPValidationError", "ValidationError"):
            del schemas[name]
        for operations in description["paths"].values():
            for operation in operations.values():
                if MEDIA_TYPE not in operation["responses"].get("422", {}).get("content", {MEDIA_TYPE: {}}):
                    del operation["responses"]["422"]
        app.openapi_schema = description
    return app.openapi_schema
