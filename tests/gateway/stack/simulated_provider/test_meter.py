from contextlib import closing
from pathlib import Path

from gateway.stack.simulated_provider.meter import Meter, State
from gateway.stack.simulated_provider.prices import PriceList, Terms, Used

PRICES = PriceList({"m": {"input_cost_per_token": 1e-09, "output_cost_per_token": 2e-09}})


def book(meter: Meter, model: str = "m", state: State = "complete") -> None:
    used, terms = Used(input=5, output=3), Terms()
    cost = meter.cost("openai", model, used, terms)
    meter.book(id="x", face="openai", operation="chat", model=model, terms=terms, state=state, used=used, cost=cost)


def test_an_invoice_adds_up_its_lines() -> None:
    meter = Meter(PRICES)
    book(meter)
    book(meter, "free")
    book(meter, state="cut")
    invoice = meter.invoice(lines=True)
    assert invoice["total_nano"] == 22
    assert invoice["models"]["m"] == {
        "requests": 2,
        "input_tokens": 10,
        "cached_tokens": 0,
        "cache_write_tokens": 0,
        "cache_write_1h_tokens": 0,
        "output_tokens": 6,
        "reasoning_tokens": 0,
        "cost_nano": 22,
    }
    assert invoice["faces"]["openai"]["requests"] == 3
    assert invoice["states"] == {"complete": 2, "cut": 1}
    assert invoice["unpriced"] == ["free"]
    assert [line["seq"] for line in invoice["lines"]] == [1, 2, 3]


def test_an_invoice_of_before_lines_had_marks_is_read(tmp_path: Path) -> None:
    path = tmp_path / "meter.jsonl"
    with closing(Meter(PRICES, path)) as before:
        book(before)
    path.write_bytes(path.read_bytes().replace(b',"mark":""', b""))
    with closing(Meter(PRICES, path)) as now:
        assert [line["mark"] for line in now.invoice(lines=True)["lines"]] == [""]


def test_a_unit_without_a_price_makes_its_line_unpriced() -> None:
    meter = Meter(PRICES)
    used, terms = Used(input=5, searches=2), Terms()
    cost = meter.cost("openai", "m", used, terms)
    line = meter.book(
        id="x", face="openai", operation="chat", model="m", terms=terms, state="complete", used=used, cost=cost
    )
    assert (line.priced, line.unpriced, line.searches, line.cost_nano) == (False, ("searches",), 2, 5)
    assert meter.invoice()["unpriced"] == ["m"]


def test_since_leaves_earlier_lines_out() -> None:
    meter = Meter(PRICES)
    for _ in range(4):
        book(meter)
    later = meter.invoice(3, lines=True)
    assert (later["total_nano"], later["requests"], later["last_seq"]) == (11, 1, 4)
    assert [line["seq"] for line in later["lines"]] == [4]
    assert meter.invoice(4)["requests"] == 0
    assert meter.invoice(99)["requests"] == 0


def test_a_file_keeps_the_invoice_and_a_torn_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "meter.jsonl"
    with closing(Meter(PRICES, path)) as first:
        book(first)
        book(first, "free")
    with path.open("ab") as file:
        file.write(b'{"seq":3,"id":"to')
    with closing(Meter(PRICES, path)) as second:
        assert second.invoice(lines=True) == first.invoice(lines=True)
        book(second)
    with closing(Meter(PRICES, path)) as third:
        assert third.invoice()["total_nano"] == 22
        third.reset()
        book(third)
    with closing(Meter(PRICES, path)) as fourth:
        assert fourth.invoice()["requests"] == 1
