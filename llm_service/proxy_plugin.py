"""The plugin's former name, for older LiteLLM configurations. It goes in 0.3: use `llm_service.litellm_plugin.hooks`."""

from llm_service.litellm_plugin.hooks import custom_auth as custom_auth  # pyright: ignore[reportUnknownVariableType]
from llm_service.litellm_plugin.hooks import witness_logger as witness_logger
