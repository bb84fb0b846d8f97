"""What is known about providers beyond their prices. Pure data, by LiteLLM's names of providers.

What must hold: the comment of each set says how a provider that is not in it is treated, and whether that can cost more
than was bounded.
"""

from __future__ import annotations

import re
from typing import Final

#: These generate and bill a whole answer even if its reader has left, so a stream from them is read to its end. A
#: stream from any other provider is cancelled, and what was received is posted. If that provider bills the rest too,
#: too little is posted.
#: https://openrouter.ai/docs/api-reference/streaming#stream-cancellation
_BILL_TO_THE_END: Final = frozenset(
    {
        "ai21",
        "featherless_ai",
        "gemini",
        "groq",
        "huggingface",
        "minimax",
        "mistral",
        "perplexity",
        "replicate",
        "sambanova",
    }
)
#: Clouds that do so for the models of every maker. LiteLLM has a name for each maker there
#: (`vertex_ai-anthropic_models`).
_CLOUDS_BILL_TO_THE_END: Final = ("bedrock", "vertex_ai")


def bills_to_the_end(provider: str) -> bool:
    """Whether a provider bills a whole stream even if its reader has left."""
    return provider in _BILL_TO_THE_END or provider.startswith(_CLOUDS_BILL_TO_THE_END)


#: Their models reason only when a request asks for it. Those of any other provider are assumed to reason in every call.
#: https://docs.anthropic.com/en/docs/build-with-claude/extended-thinking
REASON_WHEN_ASKED: Final = frozenset({"anthropic"})

#: These accept input as token ids of OpenAI's tokenizers. For any other provider such input is refused.
READ_TOKEN_IDS: Final = frozenset({"openai", "azure"})

#: If a request names no service tier, these may serve it in a tier with another price. So a tier is put into the
#: request. Any other provider is assumed to serve and bill such a request in its default tier.
#: https://platform.openai.com/docs/guides/priority-processing
CHOOSE_SERVICE_TIER: Final = frozenset({"openai"})

#: These write only the parts of a request that `cache_control` marks to their caches. Writing has a separate price. Any
#: other provider is assumed to write the whole of every request, as OpenAI does from GPT-5.6 on.
#: https://platform.claude.com/docs/en/build-with-claude/prompt-caching
WRITE_CACHES_WHEN_ASKED: Final = frozenset({"anthropic", "bedrock", "bedrock_converse", "vertex_ai-anthropic_models"})

#: Their models that search automatically accept `web_search_options`; the size in these decides the price of a search.
#: For any other provider, a request with `web_search_options` is refused.
#: https://platform.openai.com/docs/guides/tools-web-search, https://docs.perplexity.ai/docs/getting-started/pricing
TAKE_SEARCH_OPTIONS: Final = frozenset({"openai", "perplexity"})

#: For these, LiteLLM stores the marked parts of a request in a cache that is billed by the hour until it expires.
#: Nothing bounds that cost, so such a request is refused.
#: https://ai.google.dev/gemini-api/docs/caching, https://docs.litellm.ai/docs/providers/gemini#context-caching
STORE_CACHES: Final = frozenset({"gemini", "vertex_ai", "vertex_ai_beta", "vertex_ai-language-models"})

#: At these providers a token of video costs as much as one of text, unless video has its own price. At any other
#: provider, video without a price is refused.
#: https://ai.google.dev/gemini-api/docs/pricing ("text / image / video", 2026-11-28)
VIDEO_COSTS_AS_TEXT: Final = frozenset({"gemini", "vertex_ai", "vertex_ai-language-models"})

#: Models (by their names at their providers) for which a token of audio costs as much as one of text, but LiteLLM's map
#: has no price of audio. For any other model, audio without a price is refused.
#: https://cloud.google.com/vertex-ai/generative-ai/pricing ("Gemini 2.5 Pro | Input (text, image, video, audio)", and the same
#: for 3.1 Pro Preview and 3.8 Flash; 2026-09-18). https://ai.google.dev/gemini-api/docs/pricing has one price of input for
#: these, and a separate one of audio for the others. genai-prices has the same prices (2026-11-28).
AUDIO_COSTS_AS_TEXT: Final = re.compile(r"^(gemini|vertex_ai[^/]*)/gemini-(2\.5-pro|3\.1-pro-preview|3\.8-flash)$")
