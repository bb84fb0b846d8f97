import base64
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.stack.simulated_provider import tokens
from gateway.stack.simulated_provider.answers import prose
from gateway.stack.simulated_provider.words import WORDS

TEXTS = st.one_of(st.text(), st.text(alphabet="ab Z0.\n\té中😀", max_size=200))


@given(TEXTS)
def test_a_text_never_counts_more_tokens_than_bytes(text: str) -> None:
    assert tokens.count(text) <= len(text.encode())


@given(TEXTS)
def test_pieces_are_the_text_and_as_many_as_it_counts(text: str) -> None:
    pieces = tokens.split(text)
    assert "".join(pieces) == text
    assert len(pieces) == tokens.count(text)


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("The quick brown fox jumps over the lazy dog, and everybody admired its performance. " * 20, 3.5, 5),
        ("你好，世界。我们今天去哪里吃饭", 1, 1),
        ("😀👍🏽🚀", 0.5, 0.5),
        (base64.b64encode(random.Random(1).randbytes(900)).decode(), 1.4, 2.2),
    ],
)
def test_density_in_characters_a_token(text: str, least: float, most: float) -> None:
    assert least <= len(text) / tokens.count(text) <= most


def test_words_are_one_token_each() -> None:
    assert [word for word in WORDS if tokens.count(" " + word) != 1 or tokens.count(word.title()) != 1] == []


@pytest.mark.parametrize("length", [0, 1, 7, 8, 50, 500])
def test_prose_has_exactly_the_tokens_asked_for(length: int) -> None:
    pieces = prose(random.Random(length), length)
    assert tokens.split("".join(pieces)) == pieces
    assert len(pieces) == length
