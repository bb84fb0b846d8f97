"""The API's description: the one that FastAPI makes, completed with what FastAPI does not know.

What must hold:
Every answer is described, whatever its status.
Errors are described in OpenAI's shape, on every route.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

_NULLABLE = {"type": ["string", "null"]}
_ERROR = {
    "title": "Error",
    "description": "OpenAI's error object. Its field `treasurer` has further details, for programs.",
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": _NULLABLE,
                "code": _NULLABLE,
                "treasurer": {"type": "object", "additionalProperties": True},
            },
            "additionalProperties": False,
        }
    },
    "additionalProperties": False,
}
_ANYTHING = {"type": "object", "additionalProperties": True}
#: The two busiest routes, which FastAPI does not see: what they return, and the fields that a request must have.
_HOT = {
    "/v1/chat/completions": (
        "chat completion",
        {"model": {"type": "string"}, "messages": {"type": "array", "minItems": 1, "items": _ANYTHING}},
    ),
    "/v1/embeddings": ("embedding", {"model": {"type": "string"}, "input": {"type": ["string", "array"]}}),
}
#: These routes report the state of the process, need no key, and return none of the errors described here.
_OPEN = ("/healthz", "/readyz", "/metrics")


def describe(app: FastAPI) -> dict[str, Any]:
    """The description of all routes. It is made once and kept."""
    if app.openapi_schema is None:
        schema = FastAPI.openapi(app)
        for path, (name, fields) in _HOT.items():
            schema["paths"][path] = {"post": _hot(name, fields)}
        schemas = schema["components"]["schemas"]
        for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's shape of errors, which we never send
            schemas.pop(name, None)
        schemas["Error"] = _ERROR
        for path, operations in schema["paths"].items():
            for operation in operations.values():
                operation["responses"].pop("422", None)
                if path not in _OPEN:
                    operation["responses"] |= {"4XX": _failed("what is wrong with the request"), "5XX": _failed("why")}
                    operation["security"] = [{"HTTPBearer": []}]
    assert app.openapi_schema is not None
    return app.openapi_schema


def _hot(name: str, fields: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": _ANYTHING}}
    if "messages" in fields:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    request = {"type": "object", "required": list(fields), "properties": fields, "additionalProperties": True}
    return {
        "tags": ["openai"],
        "summary": f"OpenAI's {name} request, governed",
        "requestBody": {"required": True, "content": {"application/json": {"schema": request}}},
        "responses": {"200": {"description": "OpenAI's answer", "content": content}},
    }


def _failed(says: str) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/Error"}
    return {"description": f"An error: {says}", "content": {"application/json": {"schema": schema}}}
