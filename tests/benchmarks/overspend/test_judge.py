"""The judge's arithmetic, on invoices and calls made by hand."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.overspend.adapter import Books
from benchmarks.overspend.calls import Ask, End, Made
from benchmarks.overspend.judge import Verdict, judge, purchases
from benchmarks.overspend.provider import Line


def ask(tokens: int, *, fails: bool = False, key: str | None = None) -> Ask:
    headers = {} if key is None else {"Idempotency-Key": key}
    return Ask(model="m", text="", tokens=tokens, body={}, cost_nano=10, headers=headers, fails=fails)


def made(
    tokens: int, end: End = "answered", sent_at: float = 0, *, fails: bool = False, key: str | None = None
) -> Made:
    return Made(ask(tokens, fails=fails, key=key), end, sent_at, sent_at + 1)


def line(tokens: int, cost_nano: int = 10, at: float = 1, state: str = "complete") -> Line:
    return Line(seq=1, model="m", state=state, input_tokens=tokens, output_tokens=1, cost_nano=cost_nano, at=at)


def verdict(
    lines: Sequence[Line],
    calls: Sequence[Made],
    *,
    limit_nano: int = 100,
    window_s: int | None = None,
    books: Books | None = None,
    unused_nano: int | None = None,
) -> Verdict:
    return judge(
        "name",
        "title",
        limit_nano=limit_nano,
        window_s=window_s,
        lines=lines,
        made=calls,
        books=books,
        unused_nano=unused_nano,
    )


def test_the_overshoot_is_what_was_billed_above_the_limit() -> None:
    calls = [made(1), made(2), made(3, "refused")]
    lines = [line(1, 60), line(2, 41)]
    assert verdict(lines, calls).overshoot_nano == 1
    assert verdict(lines, calls, limit_nano=101).overshoot_nano == 0
    assert verdict(lines, calls, limit_nano=500).overshoot_nano == 0
    found = verdict(lines, calls)
    assert (found.billed_nano, found.answered, found.refused, found.billed_calls) == (101, 2, 1, 2)


def test_the_share_is_of_the_limit() -> None:
    assert verdict([line(1, 150)], [made(1)]).overshoot_share == 0.5
    assert verdict([line(1, 150)], [made(1)], limit_nano=0).overshoot_share == 0


def test_a_call_that_the_books_lack_is_unbooked() -> None:
    lines, calls = [line(1), line(2), line(3, cost_nano=0)], [made(1), made(2), made(3)]
    assert verdict(lines, calls, books=Books(20, 2)).unbooked == 0
    found = verdict(lines, calls, books=Books(10, 1, open_nano=5))
    assert (found.unbooked, found.books_minus_bill_nano, found.open_nano) == (1, -10, 5)
    assert verdict(lines, calls, books=Books(30, 3)).unbooked == 0  # a call that only the books have is not a lost call
    assert verdict(lines, calls, books=Books(20, None)).unbooked is None
    assert verdict(lines, calls).books_minus_bill_nano is None


def test_a_second_bill_for_one_purchase_is_a_double() -> None:
    assert verdict([line(1), line(1), line(1)], [made(1)]).doubled == 2
    assert verdict([line(1), line(1)], [made(1), made(1, "left")]).doubled == 0
    assert verdict([line(1), line(1)], [made(1), made(1, "refused")]).doubled == 1


def test_an_idempotency_key_makes_attempts_one_purchase() -> None:
    keyed = [made(1, key="k") for _ in range(3)]
    assert purchases(keyed) == 1
    assert purchases([made(1), made(1, "failed"), made(1, "refused")]) == 2
    assert verdict([line(1), line(1)], keyed).doubled == 1


def test_a_whole_answer_that_the_waiting_caller_did_not_get_is_unanswered() -> None:
    assert verdict([line(1)], [made(1, "failed")]).unanswered == 1
    assert verdict([line(1)], [made(1, "refused")]).unanswered == 1
    assert verdict([line(1)], [made(1, "answered")]).unanswered == 0
    assert verdict([line(1)], [made(1, "failed"), made(1, "answered")]).unanswered == 0
    assert verdict([line(1)], [made(1, "left")]).unanswered == 0  # no caller was waiting for the answer
    assert verdict([line(1, state="cut")], [made(1, "failed")]).unanswered == 0
    assert verdict([line(1)], [made(1, "failed", fails=True)]).unanswered == 0  # the provider failed by its script


def test_a_line_without_a_call_is_a_stray() -> None:
    found = verdict([line(1), line(9), line(9)], [made(1)])
    assert (found.strays, found.doubled) == (2, 1)


def test_each_window_has_the_limit_for_itself() -> None:
    calls = [made(1, sent_at=10), made(2, sent_at=20), made(3, sent_at=70)]
    lines = [line(1, 60, at=11), line(2, 60, at=21), line(3, 90, at=71)]
    found = verdict(lines, calls, window_s=60)
    assert (found.overshoot_nano, found.windows) == (20, 2)


def test_a_call_over_the_boundary_may_count_in_either_window() -> None:
    calls = [made(1, sent_at=10), made(2, sent_at=59), made(3, sent_at=70)]
    fits_before = [line(1, 50, at=11), line(2, 50, at=61), line(3, 100, at=71)]
    fits_after = [line(1, 80, at=11), line(2, 50, at=61), line(3, 50, at=71)]
    fits_in_none = [line(1, 80, at=11), line(2, 50, at=61), line(3, 60, at=71)]
    found = [verdict(lines, calls, window_s=60).overshoot_nano for lines in (fits_before, fits_after, fits_in_none)]
    assert found == [0, 0, 10]


def test_the_attempt_that_was_sent_last_before_a_line_is_its_own() -> None:
    calls = [made(1, "refused", sent_at=10), made(1, sent_at=65), made(2, sent_at=30)]
    lines = [line(2, 100, at=31), line(1, 90, at=66)]
    assert verdict(lines, calls, window_s=60).overshoot_nano == 0
    assert verdict([line(2, 100, at=31), line(1, 110, at=66)], calls, window_s=60).overshoot_nano == 10


def test_messages_are_counted_without_what_differs() -> None:
    calls = [Made(ask(n), "refused", 0, 1, f"429 agent-{n:012x} has used up $0.000{n}") for n in range(3)] + [
        Made(ask(9), "failed", 0, 1, "500 Server disconnected")
    ]
    assert verdict([], calls).said == ("3 × refused: 429 agent-… has used up …", "1 × failed: 500 Server disconnected")
