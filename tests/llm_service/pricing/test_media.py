"""Tokens of images, recordings and files: never fewer than a provider bills, and seldom many more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_service.errors import InvalidRequest
from llm_service.pricing.media import MediaTokens, family_of, media_tokens
from llm_service.wire.media import Kind, Medium

URL = Medium(Kind.IMAGE, remote=True)
WAV = Medium(Kind.AUDIO, milliseconds=300_000)


def image(width: int, height: int, detail: str | None = None) -> Medium:
    return Medium(Kind.IMAGE, detail=detail, width=width, height=height)


def tokens(name: str, *media: Medium, window: int | None = None) -> MediaTokens:
    return media_tokens((name,), media, window)


def refusal(name: str, *media: Medium, window: int | None = None) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as refused:
        tokens(name, *media, window=window)
    assert (refused.value.status, refused.value.param, refused.value.code) == (400, "messages", "not_priced")
    return refused.value


# Examples from the providers' own pages, read in November 2026.
PAGES = [
    # https://platform.openai.com/docs/guides/images-vision#calculating-costs
    ("openai/gpt-4o", image(1024, 1024), 765),
    ("openai/gpt-4o-2024-11-20", image(2048, 4096), 1105),
    ("openai/gpt-4o", image(4096, 8192, "low"), 85),
    ("openai/gpt-4.1-mini", image(1024, 1024), 1659),  # 1,024 patches × 1.62
    ("openai/gpt-4.1-mini", image(1800, 2400), 2353),  # 1,452 × 1.62
    ("openai/gpt-4.1-nano", image(1800, 2400), 3572),  # 1,452 × 2.46
    ("openai/gpt-4o-mini", image(1024, 1024), 25_501),  # 2,833 + 4 × 5,667
    ("openai/o1", image(1024, 1024), 675),
    ("openai/gpt-5", image(1024, 1024), 630),
    # https://docs.claude.com/en/docs/build-with-claude/vision#calculate-image-costs
    ("anthropic/claude-haiku-4-5", image(200, 200), 54),
    ("anthropic/claude-haiku-4-5", image(1000, 1000), 1334),
    ("anthropic/claude-haiku-4-5", image(1092, 1092), 1590),
    ("anthropic/claude-haiku-4-5", image(784, 1568), 1639),
    ("anthropic/claude-haiku-4-5", image(8000, 8000), 1600),
    ("anthropic/claude-opus-4-7", image(2576, 1449), 4784),
    # https://ai.google.dev/gemini-api/docs/tokens and /image-understanding
    ("gemini/gemini-2.5-flash", image(384, 384), 258),
    ("gemini/gemini-2.5-flash", image(960, 540), 6 * 258),
    ("gemini/gemini-2.5-pro", image(1024, 768), 4 * 258),
    ("gemini/gemini-3-flash-preview", image(4000, 3000), 1120),
    ("gemini/gemini-3-flash-preview", image(4000, 3000, "ultra_high"), 2240),
    # https://docs.x.ai/docs/guides/image-understanding
    ("xai/grok-2-vision-1212", image(8000, 8000), 1792),
    ("xai/grok-2-vision-1212", image(400, 400), 512),
]


@pytest.mark.parametrize(("name", "medium", "billed"), PAGES)
def test_i1_no_rule_gives_less_than_the_providers_own_page(name: str, medium: Medium, billed: int) -> None:
    assert billed <= tokens(name, medium).image <= (2 if name == "openai/gpt-5" else 1.25) * billed


# Input tokens of a request with one image and a short prompt, as the providers billed it. Measured and published by others
# (huggingface.co/datasets/JOHNISKING/image-token-cost, October 2026), with the tokens of the prompt subtracted.
SIZES = [(256, 256), (512, 512), (768, 768), (1024, 1024), (1280, 720), (1920, 1080), (1080, 1920), (2560, 1440),
         (3840, 2160), (4032, 3024)]  # fmt: skip
BILLED = {
    "anthropic/claude-sonnet-5-5": (77, (177, 438, 861, 1446, 1273, 2768, 2768, 3069, 3069, 4005)),
    "anthropic/claude-haiku-4-5": (65, (165, 426, 849, 1434, 1261, 1625, 1625, 1657, 1657, 1661)),
    "gemini/gemini-3.8-flash": (0, (1090, 1090, 1090, 1090, 1101, 1101, 1101, 1101, 1101, 1065)),
    "openai/gpt-6-astra": (0, (77, 308, 692, 1229, 1104, 2448, 2448, 4320, 9792, 14_364)),
    "openai/gpt-5.5": (0, (77, 308, 692, 1229, 1104, 2448, 2448, 4320, 9792, 11_868)),
}


@pytest.mark.parametrize("name", BILLED)
def test_i1_no_rule_gives_less_than_what_was_billed(name: str) -> None:
    prompt, billed = BILLED[name]
    for size, tokens_in_all in zip(SIZES, billed, strict=True):
        assert tokens_in_all - prompt <= tokens(name, image(*size)).image <= 1.7 * tokens_in_all, size


@pytest.mark.parametrize(("size", "billed"), [((2049, 513), 1453), ((2050, 513), 773)])
def test_i1_tiles_are_counted_up_where_the_provider_rounds_either_way(size: tuple[int, int], billed: int) -> None:
    """What GPT-4.1 billed (community.openai.com/t/1281361), including 8 tokens of text."""
    assert tokens("openai/gpt-4.1", image(*size)).image >= billed - 8


def test_i1_high_detail_has_a_lower_limit_of_patches() -> None:
    assert tokens("openai/gpt-6-astra", image(4032, 3024, "high")).image == 3000  # billed: 2,942
    # The provider may enlarge the image to 512 × 512 pixels.
    assert tokens("openai/gpt-5.5", image(64, 64, "low")).image == 308


NAMES = st.sampled_from(
    ["openai/gpt-4o", "openai/gpt-4o-mini", "openai/gpt-4.1-nano", "openai/gpt-5", "openai/gpt-5.4", "openai/o3",
     "anthropic/claude-sonnet-5-5", "anthropic/claude-haiku-4-5", "gemini/gemini-3.8-flash", "xai/grok-4"]
)  # fmt: skip


@given(NAMES, st.integers(1, 20_000), st.integers(1, 20_000), st.sampled_from([None, "auto", "low", "high"]))
def test_i1_the_most_for_an_unknown_image_is_the_most_for_any(
    name: str, width: int, height: int, detail: str | None
) -> None:
    known, unknown = (
        tokens(name, image(width, height, detail)),
        tokens(
            name,
            Medium(Kind.IMAGE, detail=detail, remote=True)
            if "gemini" not in name
            else Medium(Kind.IMAGE, detail=detail),
        ),
    )
    assert 0 < known.image <= unknown.image
    assert tokens(name, image(height, width, detail)) == known


def test_media_add_up() -> None:
    low, high = image(512, 512, "low"), image(512, 512)
    both = tokens("openai/gpt-4o", low, high)
    assert both == tokens("openai/gpt-4o", low).plus(tokens("openai/gpt-4o", high))
    assert media_tokens((), (), None) == media_tokens(("openai/gpt-4o",), (), None) == MediaTokens()


def test_i1_a_model_is_bounded_by_the_most_of_its_deployments() -> None:
    photo = image(1024, 768)
    names = ("openai/gpt-4o", "gemini/gemini-2.5-pro", "anthropic/claude-haiku-4-5")
    most = media_tokens(names, (photo,), None)
    assert most.image == max(tokens(name, photo).image for name in names)
    assert media_tokens((*names, "ollama/llava"), (photo,), 64_000).image == 64_000


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("openai/gpt-4o", "openai/gpt-4o"),
        ("openai/gpt-4o-mini-2024-07-18", "openai/gpt-4o-mini"),
        ("openai/gpt-4.1-2025-04-14", "openai/gpt-4.1"),
        ("openai/gpt-5.4-mini-2026-03-17", "openai/gpt-5.4-mini"),
        ("openai/gpt-5.6-luna", None),  # the beginning of a name does not make it the same family
        ("openai/gpt-50", None),
        ("openai/gpt-4", None),
        ("openai/llama-3.3-70b", None),
        ("anthropic/claude-haiku-4-5-20251001", "anthropic/claude-haiku-4-5"),
        ("anthropic/claude-opus-4-9", "anthropic/claude-opus-4"),
        ("anthropic/claude-9", None),
        ("vertex_ai/gemini-2.5-flash", "vertex_ai/gemini-2.5-flash"),
        ("ft:gpt-4o-2024-08-06:x", None),
        ("", None),
    ],
)
def test_a_family_is_found_by_whole_words_of_the_name(name: str, family: str | None) -> None:
    found = family_of(name)
    assert (None if found is None else found.name) == family


def test_i1_claude_4_without_a_rule_of_its_own_has_the_larger_bound() -> None:
    assert tokens("anthropic/claude-opus-4-9", image(4000, 4000)).image > 4784


# -- without a rule


@pytest.mark.parametrize(
    "medium",
    [image(10, 10), URL, Medium(Kind.PDF, pages=1, text_bytes=5), Medium(Kind.DOCUMENT, 10)],
    ids=lambda medium: medium.kind.name,
)
def test_i1_without_a_rule_the_window_is_the_bound_or_nothing(medium: Medium) -> None:
    assert tokens("ollama/llava", medium, window=128_000) == MediaTokens(image=128_000)
    assert tokens("ollama/llava", medium, medium, window=128_000) == MediaTokens(image=128_000)
    assert "'ollama/llava'" in refusal("ollama/llava", medium).message


def test_i1_an_image_with_many_frames_has_the_window_where_all_of_them_may_be_read() -> None:
    moving = Medium(Kind.IMAGE, width=64, height=64, animated=True)
    assert tokens("gemini/gemini-2.5-flash", moving, window=1_000_000).image == 1_000_000
    assert tokens("anthropic/claude-haiku-4-5", moving, window=200_000).image < 100


@pytest.mark.parametrize(
    "name", ["gemini/gemini-2.5-flash", "vertex_ai/gemini-2.5-pro", "gemini/gemini-9", "vertex_ai/x"]
)
def test_i1_a_url_from_which_google_could_fetch_a_video_is_refused(name: str) -> None:
    assert "URL" in refusal(name, URL, window=1_000_000).message


def test_a_text_file_is_bounded_by_its_bytes() -> None:
    assert tokens("ollama/llava", Medium(Kind.TEXT, 12_345)) == MediaTokens(text=12_345)


# -- PDFs


def pdf(pages: int | None, text_bytes: int | None = 0) -> Medium:
    return Medium(Kind.PDF, 500, pages=pages, text_bytes=text_bytes)


@pytest.mark.parametrize(
    ("name", "medium", "billed"),
    [
        # https://ai.google.dev/gemini-api/docs/document-processing: 258 tokens a page; /media-resolution: 560, in high
        # 1,120.
        ("gemini/gemini-2.5-pro", pdf(1000, 10**9), 258_000),
        ("gemini/gemini-3.8-flash", pdf(10), 5_600),
        # https://platform.claude.com/docs/en/build-with-claude/pdf-support: 7,000 tokens for 3 pages, and 1,500 to
        # 3,000 tokens for the text of a page.
        ("anthropic/claude-haiku-4-5", pdf(3), 7_000),
        ("anthropic/claude-haiku-4-5", pdf(1), 1_568 + 3_000),
        # Tokens that were billed for PDFs (huggingface.co/datasets/JOHNISKING/pdf-token-cost, October 2026).
        ("anthropic/claude-haiku-4-5", pdf(10, 25_000), 20_979),
        ("anthropic/claude-sonnet-5-5", pdf(10, 25_000), 23_236),
        ("gemini/gemini-3.8-flash", pdf(10, 25_000), 5_601 - 1),
        ("openai/gpt-4o", pdf(1), 765 + 500),
    ],
)
def test_i1_a_pdf_is_bounded_by_its_pages_and_their_text(name: str, medium: Medium, billed: int) -> None:
    assert billed <= tokens(name, medium).total <= 4 * billed


def test_i1_text_that_is_longer_than_a_dense_page_counts_as_long_as_it_is() -> None:
    assert tokens("openai/gpt-4o", pdf(1, 80_000)).text == 80_000
    assert tokens("openai/gpt-4o", pdf(1, 8)).text == 3_000


@pytest.mark.parametrize("medium", [pdf(None), pdf(3, None)])
def test_i1_a_pdf_that_cannot_be_counted_has_the_window(medium: Medium) -> None:
    assert tokens("openai/gpt-4o", medium, window=128_000) == MediaTokens(image=128_000)
    refusal("openai/gpt-4o", medium)


# -- audio and video


def test_i1_audio_is_bounded_by_its_seconds() -> None:
    """https://ai.google.dev/gemini-api/docs/audio: 32 tokens a second, so a minute has 1,920."""
    assert 9_600 <= tokens("gemini/gemini-2.5-flash", WAV).audio <= 9_632
    assert 1_920 <= tokens("gemini/gemini-2.5-flash", Medium(Kind.AUDIO, milliseconds=59_990)).audio <= 1_952


def test_i1_audio_of_unknown_length_has_the_window() -> None:
    unknown = Medium(Kind.AUDIO, 5)
    assert tokens("gemini/gemini-2.5-flash", unknown, window=1_000_000) == MediaTokens(audio=1_000_000)
    refusal("gemini/gemini-2.5-flash", unknown)


def test_i1_video_has_the_window_for_its_pictures_and_for_its_sound() -> None:
    film = Medium(Kind.VIDEO, 5)
    assert tokens("gemini/gemini-2.5-flash", film, window=1_000) == MediaTokens(audio=1_000, video=1_000)


def test_i1_video_of_known_length_is_bounded_by_its_frames() -> None:
    """https://ai.google.dev/gemini-api/docs/video-understanding: a second has 258 tokens for its frame, 32 for sound, 7
    for time."""
    found = tokens("gemini/gemini-2.5-flash", Medium(Kind.VIDEO, milliseconds=10_000))
    assert found.video >= 10 * (258 + 7)
    assert found.audio >= 10 * 32


@pytest.mark.parametrize("name", ["openai/gpt-4o", "anthropic/claude-haiku-5-5", "ollama/x", "gemini/gemini-9"])
@pytest.mark.parametrize("kind", [Kind.AUDIO, Kind.VIDEO])
def test_i1_audio_and_video_without_a_rule_are_refused(name: str, kind: Kind) -> None:
    assert repr(name) in refusal(name, Medium(kind, milliseconds=10), window=1_000_000).message
