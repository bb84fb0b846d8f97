"""The journal as a capability of PydanticAI: each model request, function tool and MCP call of a run is a step.

What must hold:
  This is the only module that knows PydanticAI's contract for engines (`pydantic_ai.durable_exec`). An agent is written
      as if there were no engine, and gets this capability for one run, from the executor.
  The names of steps are recorded, so they never change: tests/agents/runs/test_durability.py pins them.
  Tools run one after another, because their order is what the journal goes by.
  A tool call that a person has approved with changed arguments is made with those, validated as the model's are.
  A tool that starts runs is not a step, because the runs are. If a person has to permit it, the permission is one.
  An operation that this module does not know is a step of which a repetition is asked about.

A tool's effects on `deps` are not replayed: what the agent needs later has to be in what the tool returns.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from functools import partial
from typing import Any, cast

from pydantic import ValidationError
from pydantic_ai import RunContext
from pydantic_ai.agent.abstract import AbstractAgent
from pydantic_ai.durable_exec import (
    JSON_CODEC,
    BaseDurabilityCapability,
    DurabilityEngineSpec,
    DurableOperationBackend,
    DurableOperationId,
    EventStreamHandlerId,
    JournalCallableOperationBackend,
    ModelCompactMessagesId,
    ModelRequestId,
    RoleBasedOperationConfig,
    ToolsetCallToolId,
    ToolsetGetInstructionsId,
    ToolsetGetToolsId,
    ToolsetValidateToolArgumentsId,
    conversation_id_from_run_id,
)
from pydantic_ai.messages import ToolCallPart
from pydantic_ai.tools import ToolDefinition

from agents.configuration.terms import AgentConfiguration
from agents.recorded_json import to_json
from agents.runs.failures import RunFailed
from agents.runs.journal import Journal
from agents.runs.record import Kind, Policy
from agents.tools.policy import UNDECLARED, Declared, declared
from llm_service.model import GovernedModel

_READ = Declared(Policy.READ)
#: What is recorded of a person's permission for a tool that starts runs. The tool itself is not a step.
_PERMITTED = {"permitted": True}


async def _permitted() -> object:
    return _PERMITTED


class _Operations(JournalCallableOperationBackend[Declared]):
    """Does each of PydanticAI's operations as a step of the journal."""

    def __init__(self, agent_name: str, journal: Journal, configuration: AgentConfiguration) -> None:
        config = RoleBasedOperationConfig[Declared](
            model=_READ,
            event=_READ,
            capability=UNDECLARED,
            tool=UNDECLARED,
            resolve_tool=partial(_policy_of, configuration),
        )
        super().__init__(agent_name=agent_name, config=config)
        self._journal = journal

    async def execute(
        self,
        *,
        operation_id: DurableOperationId,
        name: str,
        body: Callable[[], Awaitable[object]],
        cache_key: tuple[object, ...],
        config: Declared,
    ) -> object:
        match operation_id:
            case ModelRequestId() | ModelCompactMessagesId():
                return await self._journal.model(name, body)
            case ToolsetCallToolId(toolset_kind=toolset):
                tool, arguments = _call(cache_key)
                kind = Kind.MCP if toolset == "mcp" else Kind.TOOL
                if config.starts_runs and config.policy is not Policy.ASK:
                    return await body()
                if config.starts_runs:
                    asked = Declared(Policy.ASK)
                    permitted = await self._journal.tool(
                        name, kind, asked, _permitted, tool=tool, arguments=arguments, as_result=_tool_return
                    )
                    return await body() if permitted == _PERMITTED else permitted
                return await self._journal.tool(
                    name, kind, config, body, tool=tool, arguments=arguments, as_result=_tool_return
                )
            case _:
                return await self._journal.other(name, config, body)


def _policy_of(
    configuration: AgentConfiguration, operation_id: DurableOperationId, tool: object | None, name: str
) -> Declared:
    """What a tool declares, or something stricter that an administrator has configured."""
    match operation_id:
        case ToolsetCallToolId():
            definition = getattr(tool, "tool_def", None)
            own = declared(getattr(definition, "metadata", None))
            policy = configuration.policy(name, own.policy)
            return own if policy is own.policy else Declared(policy, starts_runs=own.starts_runs)
        case (
            ToolsetGetToolsId() | ToolsetGetInstructionsId() | ToolsetValidateToolArgumentsId() | EventStreamHandlerId()
        ):
            return _READ
        case _:
            return UNDECLARED


def _call(cache_key: tuple[object, ...]) -> tuple[str | None, Mapping[str, Any] | None]:
    """The tool's name and arguments, which are the first two of what identifies a tool call."""
    if len(cache_key) >= 2 and isinstance(cache_key[0], str) and isinstance(cache_key[1], dict):
        return cache_key[0], cast("dict[str, Any]", cache_key[1])
    return None, None


def _tool_return(result: object) -> dict[str, object]:
    """A tool's result as PydanticAI records it (its `CallToolResult`)."""
    value = cast("object", JSON_CODEC.dump(Any, result))
    is_like_a_return = isinstance(value, dict) and cast("dict[str, object]", value).get("kind") == "tool-return"
    return {"result": value, "kind": "tool_content_result" if is_like_a_return else "tool_return"}


def _not_json(error: Exception) -> RunFailed:
    return RunFailed("not_json", f"A step returned what is not JSON, so it cannot be recorded: {error}.")


class Journaled(BaseDurabilityCapability[Any]):
    """Makes one run of an agent durable. Pass it to `agent.run(…, capabilities=[Journaled(…)])`."""

    engine_spec = DurabilityEngineSpec(
        engine_name="Treasurer",
        durable_unit_noun="step",
        durable_container_noun="run",
        codec=JSON_CODEC,
        serialization_failure=_not_json,
        wrapped_toolset_kinds=frozenset({"function", "mcp", "dynamic"}),
        toolset_lifecycles={"function": "enter-always", "mcp": "enter-in-durable-unit", "dynamic": "enter-never"},
        unsupported_runtime_toolset_kinds=frozenset({"function", "mcp", "dynamic"}),
        journal_discovery=True,
        sequential_tools_in_durable_context=True,
    )

    def __init__(
        self,
        journal: Journal,
        model: GovernedModel,
        configuration: AgentConfiguration,
        *,
        name: str,
        started_at: datetime,
    ) -> None:
        """`name` is the logic's, which the names of steps begin with. `started_at` is when the run first began."""
        super().__init__(name=name)
        self._journal = journal
        self._model = model
        self._configuration = configuration
        self._started_at = started_at

    @property
    def in_durable_context(self) -> bool:
        """The capability belongs to one run, so that is where it is."""
        return True

    def get_durable_operation_backend(self) -> DurableOperationBackend[Declared]:
        """A backend for this run's journal."""
        return _Operations(self.name, self._journal, self._configuration)

    async def prepare_tools(self, ctx: RunContext[Any], tool_defs: list[ToolDefinition]) -> list[ToolDefinition]:
        """Leave out the tools that the configuration does not allow: the model neither sees them nor may call them."""
        return [tool for tool in tool_defs if self._configuration.allows(tool.name)]

    async def before_tool_execute(
        self, ctx: RunContext[Any], *, call: ToolCallPart, tool_def: ToolDefinition, args: dict[str, Any]
    ) -> dict[str, Any]:
        """Announce the call, and put the arguments that a person has approved in place of the model's."""
        tools = None if ctx.tool_manager is None else ctx.tool_manager.tools
        tool = None if tools is None else tools.get(call.tool_name)
        # A validator in Python runs as a separate step, which a person's arguments would not have passed.
        can_change = tool is not None and tool.args_validator_func is None
        changed = self._journal.announce(call.tool_name, args, tool_def.parameters_json_schema if can_change else None)
        if changed is None:
            return args
        if tool is None or not can_change:
            raise RunFailed("arguments_refused", f"The arguments of tool {call.tool_name} cannot be changed.")
        try:
            return tool.args_validator.validate_json(to_json(changed), context=ctx.validation_context)
        except ValidationError as error:
            raise RunFailed(
                "arguments_refused",
                f"Tool {call.tool_name} does not take the arguments that a person has approved: {error}. Fork the run at the "
                "step before, so that a person is asked again.",
            ) from error

    def get_default_run_id(self) -> str:
        """The run's id, the same each time that it is taken up."""
        return str(self._journal.claim.run_id)

    def get_default_conversation_id(self, run_id: str) -> str:
        """As PydanticAI's own engines derive it."""
        return conversation_id_from_run_id(run_id)

    async def get_run_start_time(self, run_id: str) -> datetime:
        """When the run first began, so that a time limit counts from there."""
        return self._started_at

    def _bind_models(self, agent: AbstractAgent[Any, Any]) -> None:
        """The run's model, which the executor makes, takes the place of the agent's own, which it need not have."""
        self._models_by_id = {"default": self._model}
        self._default_model_id = None
