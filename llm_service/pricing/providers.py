"""What a provider is known to do that its prices do not say. Pure: data, by LiteLLM's names of providers.

What must hold: each set says what becomes of a provider that is not in it. Where that can cost more than is bounded, it says so.
"""

from __future__ import annotations

from typing import Final

#: Generate and bill a whole answer although its reader has left, so that a stream is read to its end. A stream from any
#: other provider is cancelled and posted at what came of it: if that provider bills the rest too, it is posted too low.
#: https://openrouter.ai/docs/api-reference/streaming#stream-cancellation
BILL_TO_THE_END: Final = frozenset(
    {
        "ai21",
        "bedrock",
        "bedrock_converse",
        "featherless_ai",
        "gemini",
        "groq",
        "huggingface",
        "minimax",
        "mistral",
        "perplexity",
        "replicate",
        "sambanova",
        "vertex_ai",
    }
)

#: Models that can reason do so only when a request asks for it. Any other provider's are taken to reason always.
#: https://docs.anthropic.com/en/docs/build-with-claude/extended-thinking
REASON_WHEN_ASKED: Final = frozenset({"anthropic"})

#: Read input that is given as numbers of OpenAI's tokenizers. For any other provider such input is refused.
READ_TOKEN_IDS: Final = frozenset({"openai", "azure"})

#: May serve a call in another service tier than the default although the request names none, at another price, so that
#: the request is made to name one. Any other provider is taken to serve and bill in its default tier.
#: https://platform.openai.com/docs/guides/priority-processing
CHOOSE_SERVICE_TIER: Final = frozenset({"openai"})
