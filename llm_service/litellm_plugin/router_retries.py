"""After which errors LiteLLM's router tries another deployment, according to LiteLLM's configuration.

What must hold:
  The service learns the retry policy from the running router, so that an error is not retried by both. The policy is
  stated only in LiteLLM's configuration.

Seen with LiteLLM 1.106.
"""
# LiteLLM is in another environment than the type checker's, so its types are unknown here.
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

from typing import Any

from litellm import exceptions
from litellm.router_utils.get_retry_from_policy import get_num_retries_from_retry_policy

#: The error that LiteLLM raises for each status of a provider.
_BY_STATUS = {
    400: exceptions.BadRequestError,
    401: exceptions.AuthenticationError,
    404: exceptions.NotFoundError,
    408: exceptions.Timeout,
    429: exceptions.RateLimitError,
    500: exceptions.InternalServerError,
    503: exceptions.ServiceUnavailableError,
}


def retried_statuses(router: Any, model: str) -> list[int]:
    """The statuses after which the router makes another attempt at this model."""
    return [status for status, kind in _BY_STATUS.items() if _retries(router, model, kind)]


def _retries(router: Any, model: str, kind: Any) -> int:
    given = get_num_retries_from_retry_policy(
        exception=kind(message="", model=model, llm_provider=""),
        retry_policy=router.retry_policy,
        model_group=model,
        model_group_retry_policy=router.model_group_retry_policy,
    )
    return int(router.num_retries or 0) if given is None else given
