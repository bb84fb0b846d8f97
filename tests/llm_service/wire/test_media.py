"""The type of a part is read from its bytes. A part that is not understood is refused by name before money is held."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from llm_service.errors import InvalidRequest
from llm_service.pricing.media import media_tokens
from llm_service.wire.media import Kind, Medium, read_part
from tests.examples import examples
from tests.llm_service.wire.media_files import data_url, jpeg, mp3, pdf, png, wav

MP4 = b"\0\0\0\x18ftypisom\0\0\0\0isommp41" + b"\0" * 64


def image(url: str, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **more}}


def file(data: str, **more: Any) -> dict[str, Any]:
    return {"type": "file", "file": {"file_data": data, **more}}


def read(part: dict[str, Any]) -> Medium:
    medium, _ = read_part(part)
    assert medium is not None
    return medium


def refused(part: object) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        read_part(part)
    assert (caught.value.status, caught.value.param) == (400, "messages")
    return caught.value


CARRIERS = [
    lambda url: image(url),
    lambda url: {"type": "image_url", "image_url": url},
    lambda url: {"type": "input_image", "image_url": url},
    lambda url: file(url),
    lambda url: {"type": "input_file", "file_data": url, "filename": "x"},
]


@pytest.mark.parametrize(
    ("mime", "content", "kind"),
    [
        ("image/png", png(2, 3), Kind.IMAGE),
        ("image/jpeg", jpeg(2, 3), Kind.IMAGE),
        ("audio/wav", wav(0.1), Kind.AUDIO),
        ("audio/mp3", mp3(3), Kind.AUDIO),
        ("audio/mpeg", mp3(3, tagged=True), Kind.AUDIO),
        ("audio/flac", b"fLaC" + b"\0" * 40, Kind.AUDIO),
        ("audio/ogg", b"OggS" + b"\0" * 40, Kind.AUDIO),
        ("audio/m4a", b"\0\0\0\x18ftypM4A " + b"\0" * 40, Kind.AUDIO),
        ("video/mp4", MP4, Kind.VIDEO),
        ("video/webm", b"\x1a\x45\xdf\xa3" + b"\0" * 40, Kind.VIDEO),
        ("image/heic", b"\0\0\0\x18ftypheic" + b"\0" * 40, Kind.IMAGE),
        ("application/pdf", pdf(), Kind.PDF),
        ("text/plain", "Grüße".encode(), Kind.TEXT),
        ("text/markdown; charset=utf-8", b"BM25 and PDF: %PDF-1.4", Kind.TEXT),
        ("application/json", b'{"a": 1}', Kind.TEXT),
        ("text/csv", b"a,b\n1,2", Kind.DOCUMENT),
        ("application/vnd.openxmlformats-officedocument.wordprocessingml.document", b"PK\x03\x04....", Kind.DOCUMENT),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("carrier", CARRIERS, ids=["object", "string", "input_image", "file", "input_file"])
def test_i1_what_a_part_is_does_not_depend_on_the_field_that_carries_it(
    carrier: Any, mime: str, content: bytes, kind: Kind
) -> None:
    medium, size = read_part(carrier(data_url(mime, content)))
    assert medium is not None
    assert (medium.kind, medium.size, medium.remote) == (kind, len(content), False)
    assert size == len(data_url(mime, content)) + 2


@pytest.mark.parametrize(
    ("mime", "content"),
    [
        ("image/png", wav(0.1)),
        ("image/png", mp3(2)),
        ("image/jpeg", pdf()),
        ("application/pdf", wav(0.1)),
        ("application/pdf", png(1, 1)),
        ("audio/wav", png(1, 1)),
        ("audio/mp4", MP4),
        ("text/plain", mp3(2)),
        ("text/plain", b"a\0b"),
        ("text/plain", b"\xe9"),
        ("application/octet-stream", wav(0.1)),
        ("application/octet-stream", b"\x01\x02\x03\x04\x05"),
        ("image/svg+xml", b"<svg/>"),
        ("image/png", b""),
        ("audio/wav", b""),
    ],
)
def test_i1_bytes_and_type_that_disagree_are_refused_by_name(mime: str, content: bytes) -> None:
    for carrier in CARRIERS:
        error = refused(carrier(data_url(mime, content)))
        assert error.code == "not_priced"
        assert repr(mime) in error.message


@pytest.mark.parametrize("name", ["format", "mime_type", "content_type"])
def test_i1_each_type_that_litellm_would_send_must_agree(name: str) -> None:
    """LiteLLM would send the named type instead of the data URL's type, and Gemini would believe it."""
    assert read(image(data_url("image/png", png(1, 1)), **{name: "image/webp"})).kind is Kind.IMAGE
    assert refused(image(data_url("image/png", png(1, 1)), **{name: "audio/wav"})).code == "not_priced"
    assert refused(image("https://x/y.png", **{name: "video/mp4"})).code == "not_priced"
    refused(image(data_url("image/png", png(1, 1)), **{name: 5}))


@pytest.mark.parametrize(
    ("part", "code"),
    [
        (file("", file_id="file-123"), "not_priced"),
        ({"type": "file", "file": {"file_id": "https://x/y.pdf"}}, "not_priced"),
        ({"type": "input_file", "file_id": "file-123"}, "not_priced"),
        ({"type": "input_file", "file_url": "https://x/y.pdf"}, "not_priced"),
        (file("https://x/y.pdf"), "not_priced"),
        (file("gs://bucket/film.mp4"), "not_priced"),
        (image("gs://bucket/film.mp4"), "not_priced"),
        (image("file:///etc/passwd"), "not_priced"),
        (image("HTTPS://x/y.png"), "not_priced"),
        (image("iVBORw0KGgo="), "not_priced"),
        (image("data:image/png,iVBORw0KGgo="), "not_priced"),
        (image("data:image/png;base64,????"), "invalid_request"),
        (image(" " + data_url("image/png", png(1, 1))), "not_priced"),
        (image(""), "invalid_request"),
        (image("https://x/y", detail="vast"), "invalid_request"),
        (image("https://x/y", fps=60), "not_priced"),
        (file(data_url("video/mp4", MP4), video_metadata={"fps": 60}), "not_priced"),
        ({"type": "file"}, "invalid_request"),
        ({"type": "image_url"}, "invalid_request"),
        ({"type": "image_url", "image_url": 5}, "invalid_request"),
        ({"type": "file", "file": {"file_data": "x"}, "file_data": "y"}, "invalid_request"),
        ({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}, "not_priced"),
        ({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "ogg"}}, "invalid_request"),
        ({"type": "input_audio"}, "invalid_request"),
        ({"type": "audio"}, "not_priced"),
        ({"type": "video_url", "video_url": {"url": "https://x/y.mp4"}}, "not_priced"),
        ({"type": "text", "text": "x", "image_url": "https://x/y"}, "not_priced"),
        ({"type": "thinking", "thinking": "x", "file": {"file_id": "f"}}, "not_priced"),
        ("text", "invalid_request"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_what_cannot_be_seen_or_is_malformed_is_refused(part: object, code: str) -> None:
    assert refused(part).code == code


def test_text_is_not_media() -> None:
    assert read_part({"type": "text", "text": "data:image/png;base64,AAAA"}) == (None, 0)


def test_a_url_tells_nothing_about_an_image() -> None:
    assert read(image("https://x/y.png", detail="low")) == Medium(Kind.IMAGE, detail="low", remote=True)


# -- images


@pytest.mark.parametrize("size", [(1, 1), (1024, 768), (3, 16_000), (16_000, 5)])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP", "BMP"])
def test_the_size_of_an_image_is_read_from_its_header(form: str, size: tuple[int, int]) -> None:
    written = io.BytesIO()
    Image.new("L", size).save(written, form)
    medium = read(image(data_url(f"image/{form.lower()}", written.getvalue())))
    assert ((medium.width, medium.height), medium.animated) == (size, False)


def test_the_size_of_a_lossless_webp() -> None:
    written = io.BytesIO()
    Image.new("RGBA", (1234, 77)).save(written, "WEBP", lossless=True)
    medium = read(image(data_url("image/webp", written.getvalue())))
    assert (medium.width, medium.height) == (1234, 77)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_an_image_with_several_frames_is_marked(form: str) -> None:
    frames = [Image.new("RGB", (64, 48), (shade, 0, 0)) for shade in (0, 99, 255)]
    written = io.BytesIO()
    frames[0].save(written, form, save_all=True, append_images=frames[1:])
    medium = read(image(data_url(f"image/{form.lower()}", written.getvalue())))
    assert (medium.width, medium.height, medium.animated) == (64, 48, True)


def test_i1_a_jpegs_size_is_its_frames_and_not_its_thumbnails() -> None:
    thumbnail = jpeg(8, 8)
    exif = b"\xff\xe1" + (len(thumbnail) + 8).to_bytes(2, "big") + b"Exif\0\0" + thumbnail
    medium = read(image(data_url("image/jpeg", jpeg(4000, 3000, exif))))
    assert (medium.width, medium.height) == (4000, 3000)


def test_an_image_of_any_size_is_read_without_its_pixels() -> None:
    medium = read(image(data_url("image/png", png(2_000_000, 2_000_000))))
    assert (medium.width, medium.height) == (2_000_000, 2_000_000)


@pytest.mark.parametrize(
    "content",
    [b"\xff\xd8\xff" + b"\0" * 50, b"GIF89a", b"RIFF\0\0\0\0WEBPVP8X", b"RIFF\0\0\0\0WEBPVP9 " + b"\0" * 20,
     b"\x89PNG\r\n\x1a\n", b"II*\0" + b"\xff" * 8, b"MM\0*\0\0\0\x08"],
)  # fmt: skip
def test_i1_an_image_without_a_readable_header_has_no_size(content: bytes) -> None:
    mime = "image/webp" if content[:4] == b"RIFF" else "image/x-any"
    medium = read(image(data_url(mime, content)))
    assert (medium.width, medium.height, medium.animated) == (None, None, True)


def test_an_image_without_width_or_height_has_no_size() -> None:
    for width, height in ((0, 100), (100, 0)):
        lossy = b"\x9d\x01\x2a" + width.to_bytes(2, "little") + height.to_bytes(2, "little")
        medium = read(image(data_url("image/webp", b"RIFF\0\0\0\0WEBPVP8 " + b"\0" * 7 + lossy + b"\0" * 9)))
        assert (medium.width, medium.height) == (None, None)
        assert media_tokens(["openai/gpt-4o"], [medium], None).image > 0


@given(
    st.binary(max_size=200), st.sampled_from(["image/png", "audio/wav", "audio/mpeg", "application/pdf", "text/plain"])
)
@settings(max_examples=examples(300), deadline=None)
def test_any_bytes_are_read_or_refused(content: bytes, mime: str) -> None:
    for start in (b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF1234WAVEfmt ", b"RIFF1234WEBPVP8X", b"\xff\xfb", b"GIF89a",
                  b"II*\0", b"MM\0*", b"ID3"):  # fmt: skip
        try:
            medium, _ = read_part(image(data_url(mime, start + content)))
        except InvalidRequest:
            continue
        assert medium is not None


# -- audio


@pytest.mark.parametrize("seconds", [0.5, 1, 30])
def test_the_length_of_a_wav(seconds: float) -> None:
    medium = read(file(data_url("audio/wav", wav(seconds))))
    assert medium.milliseconds is not None
    assert seconds * 1000 <= medium.milliseconds <= seconds * 1000 + 5


def test_i1_a_wav_that_claims_to_be_short_is_as_long_as_its_bytes() -> None:
    medium = read(file(data_url("audio/wav", wav(60, claimed=100))))
    assert medium.milliseconds is not None
    assert medium.milliseconds >= 60_000


def test_i1_compressed_samples_in_a_wav_have_no_known_length() -> None:
    assert read(file(data_url("audio/wav", wav(1, code=0x55)))).milliseconds is None


def test_i1_a_second_format_in_a_wav_is_not_believed() -> None:
    content = wav(1)
    twice = content[:12] + content[12:36] + content[12:36] + content[36:]
    assert read(file(data_url("audio/wav", twice))).milliseconds is None


@pytest.mark.parametrize("tagged", [False, True])
def test_the_length_of_an_mp3_is_the_sum_of_its_frames(tagged: bool) -> None:
    medium = read(file(data_url("audio/mpeg", mp3(383, tagged=tagged))))
    assert medium.milliseconds is not None
    assert 10_004 <= medium.milliseconds <= 10_020  # 383 × 1152 ÷ 44,100 s


def test_i1_an_mp3_with_something_else_in_it_has_no_known_length() -> None:
    assert read(file(data_url("audio/mpeg", mp3(5) + b"\0" * 100 + mp3(900)))).milliseconds is None


def test_audio_in_its_own_field() -> None:
    content = wav(2)
    part = {"type": "input_audio", "input_audio": {"data": base64.b64encode(content).decode(), "format": "wav"}}
    assert read(part).kind is Kind.AUDIO
    part["input_audio"] = {"data": base64.b64encode(png(1, 1)).decode(), "format": "mp3"}
    assert refused(part).code == "not_priced"
