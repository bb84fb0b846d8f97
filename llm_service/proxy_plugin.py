"""The plugin's former name, for existing LiteLLM configurations. Use `llm_service.litellm_plugin.hooks`: this goes in 0.3."""

from llm_service.litellm_plugin.hooks import custom_auth as custom_auth  # pyright: ignore[reportUnknownVariableType]
from llm_service.litellm_plugin.hooks import witness_logger as witness_logger
