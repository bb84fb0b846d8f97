"""How many tokens an image, a recording or a file can be, by the rules that providers have published. Pure.

What must hold (I1):
  A rule never gives less than what the provider bills. If a provider's page and bills differ, the larger figure is
  used.
  Images and files without a rule are bounded by the model's context window. If that is not known, they are refused.
  Audio and video without a rule are refused: their tokens have prices of their own.
  A URL is refused if the provider may fetch something other than an image from it.

To add a provider, add a row for each family of its models, with the address of the page that states the rule.
docs/decisions/0032-media-by-published-rules.md says where each figure is from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

from llm_service.errors import InvalidRequest
from llm_service.wire.media import Kind, Medium

#: The most tokens of an image for a family of models. None: this image has no bound.
ImageRule = Callable[[Medium], int | None]


@dataclass(frozen=True, slots=True)
class MediaTokens:
    """For each kind of token, the most that a request's media can amount to. `text`: of files that are read as text."""

    text: int = 0
    image: int = 0
    audio: int = 0
    video: int = 0

    @property
    def total(self) -> int:
        """The tokens of all kinds together."""
        return self.text + self.image + self.audio + self.video

    def plus(self, other: MediaTokens) -> MediaTokens:
        """The sum, kind by kind."""
        return MediaTokens(
            self.text + other.text, self.image + other.image, self.audio + other.audio, self.video + other.video
        )

    def or_more(self, other: MediaTokens) -> MediaTokens:
        """The larger of the two numbers, kind by kind."""
        return MediaTokens(
            max(self.text, other.text),
            max(self.image, other.image),
            max(self.audio, other.audio),
            max(self.video, other.video),
        )


@dataclass(frozen=True, slots=True)
class Family:
    """The rules for models whose name at their provider is `name`, or begins with `name` and a hyphen.

    `page` is the most tokens of one PDF page as a picture. `reads_pdf_text`: the text of the pages is billed in
    addition to the pictures. `audio_per_s`, `video_per_s`: tokens for each second. The sound of a video is counted
    separately, by `audio_per_s`. `fetches_images_only`: the provider refuses a URL of anything but an image.
    """

    name: str
    image: ImageRule
    page: ImageRule | None = None
    reads_pdf_text: bool = True
    audio_per_s: int | None = None
    video_per_s: int | None = None
    fetches_images_only: bool = True


def _tiled(base: int, tile: int) -> ImageRule:
    """OpenAI: a base number of tokens, plus a number for each tile of 512 pixels. The image is first scaled to fit into
    2048 × 2048, and then so that its shorter side has 768 pixels. OpenAI does not say whether a small image is
    enlarged, so the result with more tokens is used.
    """

    def tokens(image: Medium) -> int:
        if image.detail == "low":
            return base
        if image.width is None or image.height is None:
            return base + 8 * tile
        short, long = sorted((Fraction(image.width), Fraction(image.height)))
        if long > 2048:
            short, long = short * 2048 / long, Fraction(2048)
        as_it_is, scaled = (
            ceil(short * factor / 512) * ceil(long * factor / 512)
            for factor in (min(Fraction(1), 768 / short), 768 / short)
        )
        return base + tile * min(8, max(as_it_is, scaled))

    return tokens


def _patched(percent: int, most: int | None, most_high: int | None = None) -> ImageRule:
    """OpenAI: `percent` hundredths of a token for each patch of 32 pixels. Larger images are scaled down to `most`
    patches, or to `most_high` if the request asks for the detail "high". An image in low detail may be enlarged.
    """

    def tokens(image: Medium) -> int | None:
        limit = most_high if most_high is not None and image.detail in ("high", "low") else most
        if image.width is None or image.height is None:
            patches = limit
        else:
            patches = ceil(image.width / 32) * ceil(image.height / 32)
            patches = patches if limit is None else min(patches, limit)
            patches = max(patches, 256) if image.detail == "low" else patches
        return None if patches is None else -(-patches * percent // 100)

    return tokens


def _either(*rules: ImageRule) -> ImageRule:
    """The largest result of several rules, for models whose provider has one rule on its page and another in its bills."""

    def tokens(image: Medium) -> int | None:
        found = [rule(image) for rule in rules]
        return None if None in found else max(each for each in found if each is not None)

    return tokens


def _claude(most: int) -> ImageRule:
    """Anthropic: its page states two rules, one token for each patch of 28 pixels, and width × height ÷ 750. The larger
    result is used. Larger images are scaled down to `most` tokens.
    """

    def tokens(image: Medium) -> int:
        if image.width is None or image.height is None:
            return most
        patches = ceil(image.width / 28) * ceil(image.height / 28)
        return min(most, max(patches, -(-image.width * image.height // 750)))

    return tokens


def _gemini_tiled(image: Medium) -> int | None:
    """Google, up to Gemini 2.5: 258 tokens for an image of at most 384 × 384, and for each tile of a larger image.
    Google's pages state two tile sizes: the shorter side ÷ 1.5, and the same but at least 256 and at most 768 pixels.
    One more tile is added, because the whole image may be shown to the model as well.
    """
    if image.animated or image.width is None or image.height is None:
        return None
    if max(image.width, image.height) <= 384:
        return 258
    side = max(1, int(min(image.width, image.height) / 1.5))
    tiles = (ceil(image.width / unit) * ceil(image.height / unit) for unit in (side, min(768, max(256, side))))
    return 258 * (1 + max(tiles))


def _gemini_by_resolution(image: Medium) -> int | None:
    """Google, from Gemini 3: the number of tokens depends only on `media_resolution`, which LiteLLM sets from `detail`.
    "low" and "medium" do not lower it here, because they may not arrive with each part.
    """
    return None if image.animated else 2240 if image.detail == "ultra_high" else 1120


def _whole(tokens: int) -> ImageRule:
    """An image is at most this many tokens, whatever its size."""
    return lambda _image: tokens


def _tiles_of_448(image: Medium) -> int:
    """xAI: 256 tokens for the whole image, and for each tile of 448 pixels, of which there are at most six."""
    if image.width is None or image.height is None:
        return 1792
    return 256 * (1 + min(6, ceil(image.width / 448) * ceil(image.height / 448)))


def _gemini(name: str, image: ImageRule, page: int, frame: int) -> tuple[Family, ...]:
    """Gemini models exist under two of LiteLLM's providers. Audio: 32 tokens a second. Video: for each second one
    frame, plus 7 tokens for the time stamp.
    """
    return tuple(
        Family(
            f"{provider}/{name}",
            image,
            page=_whole(page),
            reads_pdf_text=False,
            audio_per_s=32,
            video_per_s=frame + 7,
            fetches_images_only=False,
        )
        for provider in ("gemini", "vertex_ai")
    )


def _openai(name: str, image: ImageRule, audio_per_s: int | None = None) -> Family:
    """OpenAI's rules for a family. A PDF page counts as an image and as its text."""
    return Family(f"openai/{name}", image, page=image, audio_per_s=audio_per_s)


def _anthropic(name: str, most: int) -> tuple[Family, ...]:
    return tuple(
        Family(f"{provider}/{name}", _claude(most), page=_whole(most)) for provider in ("anthropic", "vertex_ai")
    )


#: The text tokens of a dense page, as Anthropic states them. They also cover what is added around each page:
#: https://platform.claude.com/docs/en/build-with-claude/pdf-support#estimate-your-costs
_TEXT_OF_PAGE = 3000
_GPT_4O = _tiled(85, 170)
#: OpenAI's page has the rule of tiles for these models, but some bills show patches of 1.2 tokens.
_GPT_5 = _either(_tiled(70, 140), _patched(120, 2500))
_STANDARD, _HIGH = 1640, 5002  # tokens of Anthropic's largest images, whose long edge has 1568 or 2576 pixels

#: A model belongs to the family with the longest name that fits. Sources and dates:
#: docs/decisions/0032-media-by-published-rules.md
#: https://platform.openai.com/docs/guides/images-vision#calculating-costs
#: https://platform.claude.com/docs/en/build-with-claude/vision
#: https://ai.google.dev/gemini-api/docs/tokens and /media-resolution; https://docs.x.ai/docs/guides/image-understanding
_FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        _openai("gpt-4o", _GPT_4O),
        _openai("chatgpt-4o-latest", _GPT_4O),
        _openai("gpt-4-turbo", _GPT_4O),
        _openai("gpt-4.1", _GPT_4O),
        _openai("gpt-4o-mini", _tiled(2833, 5667)),
        _openai("gpt-4.1-mini", _patched(162, 1536)),
        _openai("gpt-4.1-nano", _patched(246, 1536)),
        _openai("o1", _tiled(75, 150)),
        _openai("o3", _tiled(75, 150)),
        _openai("o4-mini", _patched(172, 1536)),
        _openai("gpt-5", _GPT_5),
        _openai("gpt-5-mini", _patched(162, 1536)),
        _openai("gpt-5-nano", _patched(246, 1536)),
        _openai("gpt-5.1", _GPT_5),
        _openai("gpt-5.1-codex-mini", _either(_GPT_5, _patched(246, 2500))),
        _openai("gpt-5.2", _GPT_5),
        _openai("gpt-5.3", _GPT_5),
        _openai("gpt-5.4", _patched(120, 10_000, 2500)),
        _openai("gpt-5.4-mini", _patched(162, 10_000, 2500)),
        _openai("gpt-5.4-nano", _patched(246, 10_000, 2500)),
        _openai("gpt-5.5", _patched(120, 10_000, 2500)),
        _openai("gpt-6-astra", _patched(120, None, 2500)),
        _openai("gpt-audio", _GPT_4O, audio_per_s=20),
        _openai("gpt-4o-audio-preview", _GPT_4O, audio_per_s=20),
        _openai("gpt-4o-mini-audio-preview", _tiled(2833, 5667), audio_per_s=20),
        *(
            family
            for name in ("opus-4-20250514", "opus-4-0", "opus-4-1", "opus-4-5", "opus-4-6", "sonnet-4-20250514", "sonnet-4-0",
                         "sonnet-4-5", "sonnet-4-6", "haiku-4-5", "3", "3-5", "3-7")
            for family in _anthropic(f"claude-{name}", _STANDARD)
        ),
        *(
            family
            for name in ("opus-4", "opus-5", "sonnet-4", "sonnet-5", "haiku-4", "haiku-5-5", "fable-5", "mythos-5")
            for family in _anthropic(f"claude-{name}", _HIGH)
        ),
        *_gemini("gemini-2.0-flash", _gemini_tiled, page=258, frame=258),
        *_gemini("gemini-2.0-flash-lite", _gemini_tiled, page=258, frame=258),
        *_gemini("gemini-2.5-flash", _gemini_tiled, page=258, frame=258),
        *_gemini("gemini-2.5-flash-lite", _gemini_tiled, page=258, frame=258),
        *_gemini("gemini-2.5-pro", _gemini_tiled, page=258, frame=258),
        *(
            family
            for name in ("3-flash-preview", "3-pro-preview", "3.1-pro-preview", "3.1-flash-lite", "3.5-flash", "3.5-flash-lite",
                         "3.6-flash", "3.7-flash", "3.8-flash")
            for family in _gemini(f"gemini-{name}", _gemini_by_resolution, page=1120, frame=280)
        ),
        Family("xai/grok-2-vision", _tiles_of_448),
        Family("xai/grok-4", _tiles_of_448),
    )
}  # fmt: skip


def family_of(name: str) -> Family | None:
    """The rules for a model, by its name at its provider ("openai/gpt-4o-2024-11-20")."""
    while name not in _FAMILIES:
        name, hyphen, _ = name.rpartition("-")
        if not hyphen:
            return None
    return _FAMILIES[name]


def media_tokens(names: Sequence[str], media: Sequence[Medium], window: int | None) -> MediaTokens:
    """The most tokens of a request's media, at any of a model's deployments.

    `names` are the names of its deployments at their providers, `window` is the model's context window.

    Raises:
        InvalidRequest: the tokens of a part cannot be bounded.
    """
    most = MediaTokens()
    for name in names if media else ():
        family, total = family_of(name), MediaTokens()
        for medium in media:
            total = total.plus(_tokens(name, family, medium, window))
        if window is not None and total.total > window:
            total = _within(total, window)
        most = most.or_more(total)
    return most


def _within(total: MediaTokens, window: int) -> MediaTokens:
    """Limit each kind of token to the context window, because no request is longer than that."""
    return MediaTokens(
        min(total.text, window), min(total.image, window), min(total.audio, window), min(total.video, window)
    )


def _tokens(name: str, family: Family | None, medium: Medium, window: int | None) -> MediaTokens:
    if medium.kind is Kind.TEXT:
        return MediaTokens(text=medium.size)
    if medium.kind in (Kind.AUDIO, Kind.VIDEO):
        return _recording(name, family, medium, window)
    if medium.remote and (not family.fetches_images_only if family is not None else _may_fetch_anything(name)):
        raise _refusal(
            f"{name!r} may fetch audio or video from a URL, and it has another price; send the image as a data: URL"
        )
    tokens, text = None, 0
    if family is not None and medium.kind is Kind.IMAGE:
        tokens = family.image(medium)
    elif family is not None and family.page is not None and medium.kind is Kind.PDF and medium.pages is not None:
        picture = family.page(Medium(Kind.IMAGE))
        readable = medium.text_bytes if family.reads_pdf_text else 0
        if picture is not None and readable is not None:
            tokens = picture * medium.pages
            text = max(readable, _TEXT_OF_PAGE * medium.pages) if family.reads_pdf_text else 0
    if tokens is not None:
        return MediaTokens(text=text, image=tokens)
    if window is None:
        raise _refusal(
            f"A part of the kind {medium.kind.value!r} cannot be bounded for {name!r}: neither a published rule nor "
            "the model's context window is known"
        )
    return MediaTokens(image=window)


def _recording(name: str, family: Family | None, medium: Medium, window: int | None) -> MediaTokens:
    per_s = None if family is None else family.audio_per_s if medium.kind is Kind.AUDIO else family.video_per_s
    if family is None or per_s is None:
        raise _refusal(f"{medium.kind.value.capitalize()} cannot be bounded and priced for {name!r}")
    if medium.milliseconds is None:
        if window is None:
            raise _refusal(f"How long the {medium.kind.value} is cannot be read, so its cost cannot be bounded")
        return MediaTokens(audio=window) if medium.kind is Kind.AUDIO else MediaTokens(audio=window, video=window)
    seconds = medium.milliseconds // 1000 + 1  # a part of a second counts as a whole one
    if medium.kind is Kind.AUDIO:
        return MediaTokens(audio=per_s * seconds)
    return MediaTokens(audio=(family.audio_per_s or 0) * seconds, video=per_s * seconds)


def _may_fetch_anything(name: str) -> bool:
    """Whether the model may fetch more than images from an `image_url`. Google's models do, even those without a row here."""
    return name.startswith(("gemini/", "vertex_ai/"))


def _refusal(why: str) -> InvalidRequest:
    return InvalidRequest(f"{why}.", param="messages", code="not_priced")
