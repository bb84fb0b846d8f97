"""Turns errors into answers.

What must hold:
Every failure of every route has the shape of OpenAI's errors.
An answer never contains a traceback, a secret, or the values that a request carried.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from gateway.asgi import FAILED, error_headers
from llm_service.administration.inputs import bad_input
from llm_service.errors import BodyTooLarge, InvalidRequest, NotFound, TreasurerError
from llm_service.wire.openai_errors import openai_error

_log = logging.getLogger(__name__)


def install(app: FastAPI) -> None:
    """Make the app answer every error in OpenAI's shape."""
    app.add_exception_handler(TreasurerError, _known)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


def error_response(error: TreasurerError, headers: Mapping[str, str] | None = None) -> Response:
    """The answer for this error, with its headers, such as Retry-After."""
    return JSONResponse(openai_error(error), error.status, headers={**(headers or {}), **error_headers(error)})


async def _known(_: Request, error: Exception) -> Response:
    assert isinstance(error, TreasurerError)
    return error_response(error)


async def _malformed(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = error.errors()
    first = problems[0]
    if first["type"] == "json_invalid":
        return error_response(InvalidRequest("The body is not valid JSON.", code="invalid_json"))
    if tuple(first["loc"]) == ("body",) and first["type"] != "value_error":
        return error_response(InvalidRequest("Expected a JSON object as body, with content-type: application/json."))
    return error_response(bad_input(problems))


async def _http(_: Request, error: Exception) -> Response:
    """The answer to a request that FastAPI itself refuses: no such route, wrong method, a body that cannot be read."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        known: TreasurerError = NotFound("There is nothing at this address.")
    elif error.status_code == 413:
        known = BodyTooLarge("The request's body is too large.")
    elif error.status_code < 500:
        known = InvalidRequest(str(error.detail), status=error.status_code)
    else:
        known = TreasurerError(str(error.detail), status=error.status_code)
    return error_response(known, error.headers)


async def _unexpected(request: Request, error: Exception) -> Response:
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return error_response(TreasurerError(FAILED))
