"""Makes LiteLLM read a stream until the provider ends it. Loaded by the plugin in LiteLLM's environment.

What must hold:
  As long as the provider continues a stream, LiteLLM does not end it. The provider bills all of it, read or not (I1),
  and the caller asked for all of it.

LiteLLM 1.106 itself ends a stream in two places of litellm_core_utils/streaming_handler.py:
- after a hundred equal chunks in a row, because the model might be in a loop. But the zeros of a table, a line of
  dashes and deep indentation are equal chunks, too.
- after LITELLM_MAX_STREAMING_DURATION_SECONDS, if that is set.
The other ends of a stream in that file are caused by the provider (an error event, the finish reason `error`, a broken
connection), by the operator (guardrails, rules, a time-out for silence), or by a chunk that LiteLLM cannot read: see
`events.ended_by_litellm`.
"""

# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import sys

import litellm
from litellm import constants


def read_streams_to_their_end() -> None:
    """Make LiteLLM read streams to their ends in this process from now on.

    Raises:
        RuntimeError: this version of LiteLLM ends streams in a way that the plugin does not know.
    """
    for owner, name in (
        (litellm, "REPEATED_STREAMING_CHUNK_LIMIT"),
        (constants, "LITELLM_MAX_STREAMING_DURATION_SECONDS"),
    ):
        if not hasattr(owner, name):
            raise RuntimeError(f"LiteLLM has no {name}, so it ends streams in another way; see whole_streams.py")
    litellm.REPEATED_STREAMING_CHUNK_LIMIT = sys.maxsize
    constants.LITELLM_MAX_STREAMING_DURATION_SECONDS = None
