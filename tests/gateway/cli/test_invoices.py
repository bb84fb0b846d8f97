"""`treasurer invoice`."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from typer.testing import Result

from gateway.cli.common import ExitCode
from llm_service.errors import InvalidRequest, NotFound

Treasurer = Callable[..., Result]
JANUARY = ("gpt-4o", "--from", "2026-01-01", "--to", "2026-02-01")


def test_an_invoice_is_recorded_replaced_audited_and_removed(administer: Treasurer) -> None:
    made = administer("invoice", "record", *JANUARY, "--amount", "12.5", "--note", "no. 7")
    assert made.exit_code == ExitCode.OK
    words = " ".join(made.stdout.split())
    assert "gpt-4o 2026-01-01 00:00 2026-02-01 00:00 $12.50 $0.00 $0.00 -$12.50 5% no. 7" in words
    audited = administer("audit")
    assert audited.exit_code == ExitCode.AUDIT_DIFFERENCE
    assert "$12.50 below the invoice, and the bound is 5% of it" in " ".join(audited.stdout.split())
    administer("invoice", "record", *JANUARY, "--amount", "0", "--within", "1%")
    assert administer("audit").exit_code == ExitCode.OK
    [listed] = json.loads(administer("invoice", "list", "--json").stdout)
    assert (listed["amount"], listed["bound"], listed["note"]) == ("0.000000000", "1%", None)
    assert listed["recorded_by"].startswith("cli ")
    gone = administer("invoice", "remove", str(listed["id"]))
    assert gone.stdout == f"Invoice {listed['id']} (gpt-4o) is removed. The audit compares it no more.\n"
    assert "There are no invoices." in administer("invoice", "list").stdout
    actions = json.loads(administer("changes", "--kind", "invoices", "--json").stdout)
    assert [change["action"] for change in actions] == ["removed", "changed", "created"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("record", *JANUARY), "--amount"),
        (("record", *JANUARY, "--amount", "much"), "amount: "),
        (("record", *JANUARY, "--amount", "1", "--within", "5"), "bound: "),
        (("record", "m", "--from", "2026-01", "--to", "2026-02-01", "--amount", "1"), "or a day in UTC"),
        (("record", "m", "--from", "2026-02-01", "--to", "2026-02-01", "--amount", "1"), "must be before"),
    ],
)
def test_mistakes(administer: Treasurer, arguments: tuple[str, ...], says: str) -> None:
    wrong = administer("invoice", *arguments)
    assert (wrong.exit_code, wrong.stdout) == (ExitCode.USAGE, "")
    assert says in wrong.stderr


def test_a_period_that_is_not_over_and_an_invoice_that_is_not_there(administer: Treasurer) -> None:
    later = administer("invoice", "record", "m", "--from", "2026-01-01", "--to", "2199-01-01", "--amount", "1")
    assert isinstance(later.exception, InvalidRequest)  # `main` prints this error
    assert "a period that is over" in later.exception.message
    assert isinstance(administer("invoice", "remove", "7").exception, NotFound)
