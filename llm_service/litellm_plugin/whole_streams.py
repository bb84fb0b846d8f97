"""LiteLLM reads a provider's stream to the end that the provider gives it. Loaded by the plugin in LiteLLM's environment.

What must hold:
  A stream that its provider goes on with goes on, because the provider bills all of it, read or not (I1), and because the
  caller asked for all of it.

LiteLLM 1.106 ends a stream by itself in two places of litellm_core_utils/streaming_handler.py:
- after a hundred equal chunks in a row, because the model might be in a loop. So are the zeros of a table, a ruler of
  dashes and deep indentation.
- after LITELLM_MAX_STREAMING_DURATION_SECONDS, if that is set.
What else ends a stream there is the provider's (its error event, its finish reason `error`, its broken connection), the
operator's (guardrails, rules, a time-out of silence), or a chunk that LiteLLM cannot read: see `events.ended_by_litellm`.
"""

# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import sys

import litellm
from litellm import constants


def read_streams_to_their_end() -> None:
    """Do this in this process from now on.

    Raises:
        RuntimeError: this version of LiteLLM ends streams in another way, which has to be examined first.
    """
    for owner, name in (
        (litellm, "REPEATED_STREAMING_CHUNK_LIMIT"),
        (constants, "LITELLM_MAX_STREAMING_DURATION_SECONDS"),
    ):
        if not hasattr(owner, name):
            raise RuntimeError(f"LiteLLM has no {name}, so it ends streams in another way; see whole_streams.py")
    litellm.REPEATED_STREAMING_CHUNK_LIMIT = sys.maxsize
    constants.LITELLM_MAX_STREAMING_DURATION_SECONDS = None
