"""Rate cards that were stored with a hold are read with their old meaning (I2). test_rates.py tests random cards."""

from __future__ import annotations

from llm_service.pricing.rates import MostBeyondTokens, OffPeak, Rates, TokenRates
from llm_service.pricing.stored_rates import dump_rates, load_rates


def test_a_card_of_an_earlier_version_is_read() -> None:
    card = '{"d1":{"default":[[0,1,2,3,4,5,6],[9,1,2,3,4,5,6]],"flex":[],"priority":[]}}'
    assert load_rates(card) == {"d1": Rates((TokenRates(0, 1, 2, 3, 4, 5, 6), TokenRates(9, 1, 2, 3, 4, 5, 6)))}
    assert dump_rates(load_rates(card)) == card  # the text stays the same, so equal rates are one card in the database


def test_a_card_with_everything_is_read_as_it_was() -> None:
    tier = TokenRates(0, 1, 2, 3, 4, 5, 6, audio_input=7, video_output=8)
    rates = Rates(
        (tier,),
        priority=(tier,),
        request=(1, 2, 3),
        search=(4, 5, 6),
        context=0,
        citation=9,
        regions=(("us", 11_000),),
        speeds=(("fast", 60_000),),
        always=11_000,
        off_peak=OffPeak((tier,), (((1, 2), 0, 60),), "Asia/Shanghai"),
        beyond=MostBeyondTokens(80, 20_000, 100_000),
    )
    assert load_rates(dump_rates({"d1": rates})) == {"d1": rates}
