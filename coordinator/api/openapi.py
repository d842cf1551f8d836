"""OpenAPI 3.1 of the API, made from the route table and the shapes of `schemas`. Pure."""

from __future__ import annotations

import re

from coordinator.api import schemas
from coordinator.api.rejoin_schemas import REJOIN_SCHEMAS
from coordinator.api.routes import ROUTES, Access, Route
from coordinator.api.schemas import TEXT, Json, reference
from meshkit import __version__

__all__ = ["SCHEMAS", "document"]

SCHEMAS: Json = {**schemas.SCHEMAS, **REJOIN_SCHEMAS}


def document() -> Json:
    """Return the description of the whole interface."""
    paths: dict[str, Json] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "MeshKit automation API",
            "version": __version__,
            "description": "HTTPS with mutual TLS. See docs/api.md.",
        },
        "paths": paths,
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {"mutualTLS": {"type": "mutualTLS"}},
        },
        "security": [{"mutualTLS": []}],
    }


def _operation(route: Route) -> Json:
    operation: Json = {
        "operationId": route.name,
        "summary": route.summary,
        "parameters": [*_path_parameters(route), *_query_parameters(route)],
        "responses": {
            "200": {
                "description": "Done, or nothing was to be done.",
                "content": {route.media_type: {"schema": reference(route.answer)}},
            },
            "default": {
                "description": "Why not.",
                "content": {"application/problem+json": {"schema": reference("Problem")}},
            },
        },
        "x-access": route.access.value,
    }
    if route.name in ("begin_failover", "begin_verify", "begin_replay", "begin_evacuation"):
        operation["responses"]["202"] = {
            "description": "Begun; follow it.",
            "content": {route.media_type: {"schema": reference(route.answer)}},
        }
    if route.body:
        operation["requestBody"] = {
            "content": {"application/json": {"schema": reference(route.body)}}
        }
    if route.access is Access.OPERATE:
        operation["description"] = "For operators only."
    return operation


def _path_parameters(route: Route) -> list[Json]:
    names = re.findall(r"{(\w+)}", route.path)
    return [{"name": name, "in": "path", "required": True, "schema": TEXT} for name in names]


def _query_parameters(route: Route) -> list[Json]:
    return [{"name": name, "in": "query", "schema": TEXT} for name in route.query]
