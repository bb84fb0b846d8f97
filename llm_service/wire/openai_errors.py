"""Errors in the form of OpenAI's API: https://platform.openai.com/docs/guides/error-codes. Pure.

What must hold: the body of an error is made only here, for every route that speaks OpenAI's API. An API with another
shape of errors has its own module beside this one. The HTTP status and headers come from `TreasurerError`.
"""

from __future__ import annotations

from typing import Any

import orjson

from llm_service.errors import TreasurerError


def openai_error(error: TreasurerError) -> dict[str, Any]:
    """OpenAI's error object. Treasurer's details for programs are in a separate field of it."""
    fields: dict[str, Any] = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    if error.details:
        fields["treasurer"] = error.details
    return {"error": fields}


def openai_error_body(error: TreasurerError) -> bytes:
    """The whole body of an error answer."""
    return orjson.dumps(openai_error(error))


def openai_error_event(error: TreasurerError) -> bytes:
    """The event that ends a stream after it has begun."""
    return b"data: " + openai_error_body(error) + b"\n\n"
