"""The pure parts of reports: valid queries, and the output formats."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_service.errors import InvalidRequest
from llm_service.money import NANO_PER_DOLLAR
from llm_service.treasury.reports.formats import report_as_csv, report_as_json
from llm_service.treasury.reports.query import PARAMETERS, Order, Property, ReportQuery, parse_query
from llm_service.treasury.reports.reports import CostReport, Figures, ReportRow, label

NOW = datetime(2026, 11, 30, 12, 0, tzinfo=UTC)
PARIS = ZoneInfo("Europe/Paris")


def parse(**parameters: str | list[str]) -> ReportQuery:
    lists = {name.rstrip("_"): [value] if isinstance(value, str) else value for name, value in parameters.items()}
    return parse_query(lists, now=NOW)


def test_nothing_asked_is_costs_by_agent_for_all_time() -> None:
    assert parse() == ReportQuery(group_by=(Property.AGENT,))


@pytest.mark.parametrize("given_as", [["team,model"], ["team", "model"], [" team , model "]])
def test_properties_are_separated_by_commas_or_repeated(given_as: list[str]) -> None:
    assert parse(group_by=given_as).group_by == (Property.TEAM, Property.MODEL)


@pytest.mark.parametrize(
    ("parameters", "param", "says"),
    [
        ({"group_by": "colour"}, "group_by", "'colour' is not one of: organisation, team, agent, key, model"),
        ({"group_by": ""}, "group_by", "'' is not one of"),
        ({"group_by": "agent,agent"}, "group_by", "twice"),
        ({"group_by": "agent,team,key,model,run"}, "group_by", "at most 4"),
        ({"group_by": "agent; DROP TABLE ledger"}, "group_by", "is not one of"),
        ({"order": "price"}, "order", "is not one of: cost, calls, tokens"),
        ({"limit": "0"}, "limit", "from 1 to 100000"),
        ({"limit": "-1"}, "limit", "from 1 to 100000"),
        ({"limit": "1e3"}, "limit", "whole number"),
        ({"limit": "٣"}, "limit", "whole number"),
        ({"limit": "9" * 5000}, "limit", "whole number"),
        ({"limit": ["1", "2"]}, "limit", "give it once"),
        ({"time_zone": "Mars/Olympus"}, "time_zone", "like Europe/Paris"),
        ({"time_zone": "../../etc/passwd"}, "time_zone", "like Europe/Paris"),
        ({"from_": "soon"}, "from", "how long ago"),
        ({"from_": "2026-13-01"}, "from", "is not a time"),
        ({"from_": "999999w"}, "from", "is not a time"),
        ({"from_": "0001-01-01", "time_zone": "Asia/Tokyo"}, "from", "is not a time"),
        ({"to": "9999-12-31T23:00Z", "time_zone": "Asia/Tokyo"}, "to", "is not a time"),
        ({"to": "2026-11-30T10:00:00 01:00"}, "to", "%2B"),
        ({"from_": "2026-11-30", "to": "2026-11-30"}, "to", "before it begins"),
        ({"agent": ""}, "agent", "1 to 1000 bytes"),
        ({"agent": "a\0b"}, "agent", "UTF-8"),
        ({"agent": "\ud800"}, "agent", "UTF-8"),
        ({"tag": "é" * 501}, "tag", "1 to 1000 bytes"),
        ({"run": ["x"] * 101}, "run", "at most 100"),
        ({"hour": "3"}, "hour", "Unknown parameter 'hour'. Allowed: group_by, from, to"),
        ({"agents": "a"}, "agents", "Unknown parameter"),
    ],
)
def test_a_wrong_parameter_is_named_with_what_is_allowed(
    parameters: dict[str, str | list[str]], param: str, says: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(**parameters)
    assert caught.value.param == param
    assert says in caught.value.message


@pytest.mark.parametrize(
    ("written", "zone", "moment"),
    [
        ("2026-11", "UTC", datetime(2026, 11, 1, tzinfo=UTC)),
        ("2026-11-30", "Europe/Paris", datetime(2026, 11, 30, tzinfo=PARIS)),
        ("2026-07-01T10:30", "Europe/Paris", datetime(2026, 7, 1, 8, 30, tzinfo=UTC)),
        ("2026-11-30T10:00:00+05:30", "Europe/Paris", datetime(2026, 11, 30, 4, 30, tzinfo=UTC)),
        ("2026-11-30T10:00Z", "UTC", datetime(2026, 11, 30, 10, tzinfo=UTC)),
        ("now", "UTC", NOW),
        ("90m", "UTC", datetime(2026, 11, 30, 10, 30, tzinfo=UTC)),
        ("7d", "UTC", datetime(2026, 11, 23, 12, tzinfo=UTC)),
        ("today", "Asia/Tokyo", datetime(2026, 11, 29, 15, tzinfo=UTC)),
        ("yesterday", "America/New_York", datetime(2026, 11, 29, 5, tzinfo=UTC)),
    ],
)
def test_times_are_read_as_people_write_them(written: str, zone: str, moment: datetime) -> None:
    assert parse(from_=written, time_zone=zone).start == moment


def test_a_filter_takes_several_values_and_none() -> None:
    query = parse(tag=["a,b", "(none)"], model="gpt", order="latency", limit="5")
    assert query.filters == ((Property.MODEL, ("gpt",)), (Property.TAG, ("a,b", None)))
    assert (query.order, query.limit) == (Order.LATENCY, 5)


@given(st.dictionaries(st.sampled_from([*PARAMETERS, "x"]), st.lists(st.text(max_size=30), max_size=3)))
def test_any_text_is_a_query_or_a_named_error(parameters: dict[str, list[str]]) -> None:
    try:
        parse_query(parameters, now=NOW)
    except InvalidRequest as error:
        assert error.param in parameters  # noqa: PT017 - a query that is right raises nothing


def made(*rows: tuple[str | None, int]) -> CostReport:
    return CostReport(
        query=ReportQuery(group_by=(Property.TAG,), filters=((Property.RUN, ("r", None)),)),
        rows=tuple(ReportRow((value,), Figures(cost_nano=cost)) for value, cost in rows),
        total=Figures(cost_nano=sum(cost for _, cost in rows), estimated_nano=1, latency_avg_ms=1.26),
        left_out=0,
        notes=("a note",),
    )


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠"])
def test_a_csv_holds_no_formula(start: str) -> None:
    text = start + 'HYPERLINK("https://example.com?" & A1, "ok")'
    rows = list(csv.DictReader(io.StringIO(report_as_csv(made((text, 1))), newline="")))
    assert rows[0]["tag"] == "'" + text


@given(st.text(), st.integers(-(10**12), 10**20))
def test_a_csv_reads_back_as_it_was(text: str, cost: int) -> None:
    (row,) = csv.DictReader(io.StringIO(report_as_csv(made((text, cost))), newline=""))
    assert row["tag"].removeprefix("'").endswith(text.removeprefix("'"))
    assert Decimal(row["cost_usd"]) * NANO_PER_DOLLAR == int(row["cost_nano"]) == cost


def test_a_csv_names_the_row_of_none_and_has_plain_numbers() -> None:
    lines = report_as_csv(made((None, -5))).split("\r\n")
    assert lines[0].startswith("tag,cost_usd,cost_nano,calls,attempts,errors,refusals,input_tokens,cached_tokens,")
    assert lines[0].endswith(",latency_p95_ms,estimated_usd,estimated_nano")
    assert lines[1].startswith("(none),-0.000000005,-5,0,0,")
    assert lines[1].endswith(",,,,0.000000000,0")


def test_json_has_money_exactly_twice_and_null_for_none() -> None:
    document = json.loads(json.dumps(report_as_json(made((None, 3), ("x", 10**19)))))
    assert [row["tag"] for row in document["rows"]] == [None, "x"]
    assert document["total"]["cost_nano"] == 10**19 + 3
    assert document["total"]["cost"] == "10000000000.000000003"
    assert (document["total"]["estimated"], document["total"]["estimated_nano"]) == ("0.000000001", 1)
    assert document["total"]["latency_avg_ms"] == 1.3
    assert document["filters"] == {"run": ["r", None]}
    assert document["notes"] == ["a note"]


def test_times_are_labelled_in_the_report_s_zone() -> None:
    moment = datetime(2026, 10, 31, 23, 0, tzinfo=UTC)
    assert label(Property.HOUR, moment, PARIS) == "2026-11-01T00:00+01:00"
    assert label(Property.DAY, moment, PARIS) == "2026-11-01"
    assert label(Property.MONTH, moment, PARIS) == "2026-11"
    assert label(Property.AGENT, None, PARIS) is None
