"""How much longer a text can become before it is counted: an upper bound, computed in time linear in the text."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_service.wire.expansion import nfkc_growth_bytes
from tests.examples import examples

#: Composed letters, letters that combine with the next character, accents of several classes, compatibility characters.
ODD = st.sampled_from("aeuαωאก한가각çäǖᾂΐḿṩệﬁ½ﷺﷻｶﾞ①㎞̴়゙্ًّ้̧̨̛̖̣̀́̄̈̈́ͅো𝅗𝅥𝅘𝅥𝅮𑂚")


def exact(text: str) -> int:
    return len(unicodedata.normalize("NFKC", text).encode())


@given(st.text(st.one_of(ODD, st.characters(exclude_categories=["Cs"])), max_size=40))
@settings(max_examples=examples(2000))
def test_i1_no_text_is_longer_than_its_bytes_and_what_it_grows_by(text: str) -> None:
    assert exact(text) <= len(text.encode()) + nfkc_growth_bytes(text.encode())


def test_i1_every_character_with_every_kind_of_accent_behind_it() -> None:
    accents = [chr(code) for code in range(0x300, 0x370)]
    for code in (*range(0x80, 0xD800), *range(0xE000, 0x30000)):
        text = chr(code) + accents[code % len(accents)] + accents[code // 7 % len(accents)]
        assert exact(text) <= len(text.encode()) + nfkc_growth_bytes(text.encode()), hex(code)


@pytest.mark.parametrize(
    "text",
    ["Grüße aus Köln", "Tiếng Việt có dấu", unicodedata.normalize("NFD", "Tiếng Việt có dấu"), "日本語のテキスト",
     "한국어 문장입니다", "हिन्दी में पाठ", "ภาษาไทยที่นี่", "русский текст й"],
)  # fmt: skip
def test_ordinary_text_grows_by_nothing(text: str) -> None:
    assert nfkc_growth_bytes(text.encode()) == 0


def test_a_million_accents_on_one_letter_are_bounded_at_once() -> None:
    """Normalizing this text would keep every other caller of the process waiting for an hour."""
    assert nfkc_growth_bytes(("a" + "\u0301\u0323" * 500_000).encode()) <= 8
    assert nfkc_growth_bytes(("\ufdfa" * 1_000_000).encode()) == 30_000_000
