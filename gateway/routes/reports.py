"""GET /reports/costs: who spent what, for administrators.

What must hold:
The key is checked before a parameter is read.
A wrong parameter is answered with a 400 that names it and what is allowed.
(`llm_service.treasury.reports.reports` decides what is summed, and how.)
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from gateway.auth import administrator
from gateway.composition import GatewayRuntime
from llm_service.errors import InvalidRequest
from llm_service.money import format_decimal
from llm_service.treasury.reports.formats import report_as_csv, report_as_json
from llm_service.treasury.reports.query import FILTERS, MAX_PROPERTIES, MAX_ROWS, NONE, Order, Property, parse_query
from llm_service.treasury.reports.reports import cost_report

router = APIRouter(tags=["reports"], dependencies=[Depends(administrator)])

_FORMATS = ("json", "csv")


def _parameter(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"in": "query", "name": name, "required": False, "description": description, "schema": schema}


# The parameters are described by hand, because `parse_query` reads them (as for the command line), not FastAPI.
_PARAMETERS = [
    _parameter(
        "group_by",
        f"1 to {MAX_PROPERTIES} properties, separated by commas. Default: agent.",
        {"type": "array", "items": {"type": "string", "enum": list(Property)}, "maxItems": MAX_PROPERTIES},
    ),
    _parameter("from", "The first moment: 2026-11, 2026-11-30, 2026-11-30T14:00+01:00, 7d …", {"type": "string"}),
    _parameter("to", "The moment after the last; written like from.", {"type": "string"}),
    _parameter("time_zone", "The time zone of hours, days and months. Default: UTC.", {"type": "string"}),
    *(
        _parameter(name, f"Only calls of this {name}; {NONE}: calls without one. May be repeated.", {"type": "string"})
        for name in FILTERS
    ),
    _parameter("order", "Default: time, then cost.", {"type": "string", "enum": list(Order)}),
    _parameter("limit", "Rows at most. Default: 1000.", {"type": "integer", "minimum": 1, "maximum": MAX_ROWS}),
    _parameter("format", "Default: json.", {"type": "string", "enum": list(_FORMATS)}),
]
_FORMS: dict[str, Any] = {
    "description": "The report, in the format that was asked for.",
    "content": {"application/json": {"schema": {"type": "object"}}, "text/csv": {"schema": {"type": "string"}}},
}


@router.get("/reports/costs", openapi_extra={"parameters": _PARAMETERS}, responses={200: _FORMS})
async def costs(request: Request) -> Response:
    """Cost, tokens, calls, errors, refusals and latency, by any properties of a call.

    As CSV the rows are the body; the total and the notes are in the headers `x-treasurer-total-cost`
    (dollars) and `x-treasurer-report-note`.
    """
    parameters: dict[str, list[str]] = {}
    for name, value in request.query_params.multi_items():
        parameters.setdefault(name, []).append(value)
    form = parameters.pop("format", ["json"])
    if len(form) != 1 or form[0] not in _FORMATS:
        raise InvalidRequest(f"format: {', '.join(form)!r} is not one of: {', '.join(_FORMATS)}.", param="format")
    query = parse_query(parameters, now=datetime.now(UTC))
    runtime: GatewayRuntime = request.app.state.runtime
    report = await cost_report(runtime.pools.reading, query)
    if form == ["json"]:
        return JSONResponse(report_as_json(report))
    headers = {
        "content-disposition": 'attachment; filename="costs.csv"',
        "x-treasurer-total-cost": format_decimal(report.total.cost_nano),
    }
    if report.notes:
        headers["x-treasurer-report-note"] = " ".join(report.notes)
    return Response(report_as_csv(report), media_type="text/csv", headers=headers)
