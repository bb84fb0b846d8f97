"""Bodies as clients send them: compressed, in another character set, as a form."""

from __future__ import annotations

import gzip
import json
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.unpacking import is_packed, plain_body
from llm_service.errors import BodyTooLarge, InvalidRequest, TreasurerError, UnsupportedBody

MOST = 100_000
TEXT = json.dumps({"model": "m", "text": "Grüße " * 50}, ensure_ascii=False)
BODY = TEXT.encode()


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def plain(body: bytes, coding: str | None = None, kind: str = "application/json") -> bytes:
    headers = {"content-type": kind} | ({} if coding is None else {"content-encoding": coding})
    return plain_body(body, headers, most_bytes=MOST, too_large="too large")


def refused(body: bytes, coding: str | None = None, kind: str = "application/json") -> TreasurerError:
    with pytest.raises(TreasurerError) as caught:
        plain(body, coding, kind)
    return caught.value


@pytest.mark.parametrize(
    ("packed", "coding"),
    [
        (gzip.compress(BODY, mtime=0), "gzip"),
        (gzip.compress(BODY, mtime=0), "X-GZip "),
        (gzip.compress(BODY[:50], mtime=0) + gzip.compress(BODY[50:], mtime=0), "gzip"),
        (zlib.compress(BODY), "deflate"),
        (raw_deflate(BODY), "deflate"),
        (BODY, "identity"),
        (BODY, ""),
        (BODY, None),
        (b"\xef\xbb\xbf" + BODY, None),
        (gzip.compress(b"\xef\xbb\xbf" + BODY, mtime=0), "gzip"),
    ],
)
def test_a_body_is_unpacked(packed: bytes, coding: str | None) -> None:
    assert plain(packed, coding) == BODY


def test_i1_a_body_that_unpacks_to_more_than_the_limit_is_refused_before_it_is_unpacked_whole() -> None:
    bomb = gzip.compress(b" " * 50_000_000, mtime=0)
    assert len(bomb) < MOST
    assert isinstance(refused(bomb, "gzip"), BodyTooLarge)
    assert isinstance(refused(gzip.compress(b" " * 60_000, mtime=0) * 2, "gzip"), BodyTooLarge)
    assert plain(gzip.compress(b" " * MOST, mtime=0), "gzip") == b" " * MOST
    assert isinstance(refused(gzip.compress(b" " * (MOST + 1)), "gzip"), BodyTooLarge)


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip", "compress", "x" * 500])
def test_a_coding_that_is_not_unpacked_is_named_with_those_that_are(coding: str) -> None:
    error = refused(BODY, coding)
    assert isinstance(error, UnsupportedBody)
    assert (error.status, error.headers()["accept-encoding"]) == (415, "gzip, deflate")
    assert coding[:40] in error.message
    assert "gzip, deflate" in error.message


@pytest.mark.parametrize(
    "packed",
    [BODY, gzip.compress(BODY, mtime=0)[:-4], gzip.compress(BODY, mtime=0)[:40], gzip.compress(BODY, mtime=0) + b"x"],
)
def test_a_body_that_is_not_what_it_says_is_a_400(packed: bytes) -> None:
    error = refused(packed, "gzip")
    assert (error.status, error.code) == (400, "invalid_encoding")


@pytest.mark.parametrize("charset", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be", "utf-32-le"])
@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-16"])
def test_utf_16_and_utf_32_are_a_415_that_asks_for_utf_8(charset: str, kind: str) -> None:
    error = refused(TEXT.encode(charset), kind=kind)
    assert (error.status, error.code) == (415, "unsupported_media_type")
    assert "UTF-8" in error.message
    assert refused(gzip.compress(TEXT.encode(charset)), "gzip", kind).status == 415


def test_another_character_set_is_refused_where_it_matters() -> None:
    kind = 'application/json; charset="ISO-8859-1"'
    assert "'iso-8859-1'" in refused(TEXT.encode("latin-1"), kind=kind).message
    assert plain(b'{"a": 1}', kind=kind) == b'{"a": 1}'
    assert plain(BODY, kind="application/json; charset=UTF-8") == BODY


def test_a_multipart_form_is_a_415_that_asks_for_json() -> None:
    error = refused(b"--x\r\n", kind="multipart/form-data; boundary=x")
    assert (error.status, error.headers()) == (415, {})
    assert "JSON" in error.message


def test_no_body_is_nothing_to_refuse() -> None:
    assert plain(b"", "br", "multipart/form-data") == b""


@given(st.binary(max_size=300), st.sampled_from(["gzip", "deflate", "br", "", "identity"]))
def test_whatever_is_sent_is_read_or_refused_with_a_4xx(body: bytes, coding: str) -> None:
    try:
        plain(body, coding)
    except InvalidRequest as error:
        assert 400 <= error.status < 500  # noqa: PT017


def test_only_a_coding_makes_a_body_packed() -> None:
    assert [is_packed({"content-encoding": coding}) for coding in ("gzip", "br", "Identity", "", " ")] == [
        True,
        True,
        False,
        False,
        False,
    ]
    assert not is_packed({})
