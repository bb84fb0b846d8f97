"""The assistant with the simulated model and the simulated desk, both in this process: it remembers, and asks before it acts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import pytest
from pydantic import ValidationError
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models import override_allow_model_requests
from pydantic_ai.models.function import AgentInfo, FunctionModel

from agents.approvals.record import Decision
from agents.catalog.assistant import DEFINITION, Message
from agents.runs.executor import RunExecutor
from agents.runs.in_memory import InMemoryRuns
from agents.runs.record import Policy, Run, State, WaitFor
from agents.runs.starting import RunStarter, StartRequest
from agents.runs.worker import Worker
from agents.services import Services
from agents.services.subscriptions import DeskRefused, DeskUnreachable, SubscriptionDesk
from gateway.stack.simulated_provider import openai
from gateway.stack.simulated_provider.answers import compose
from gateway.stack.simulated_provider.ask import BadRequest
from gateway.stack.simulated_provider.desk import Desk
from gateway.stack.simulated_provider.prices import Used
from gateway.stack.simulated_provider.script import Knobs
from gateway.stack.simulated_provider.wire import Reply
from llm_service.call.response_headers import CALL_ID
from llm_service.model import StreamedAnswer
from llm_service.runs.money import RunMoney
from llm_service.treasury.in_memory import InMemoryTreasury
from llm_service.types import Answer, CallContext, Principal
from tests.agents.runs.scripted import Configurations, Principals, approve, asked


@dataclass(frozen=True)
class DeskAtHand(SubscriptionDesk):
    """The simulated desk without a network. `breaks`: an answer is lost after its effect, once for each entry."""

    desk: Desk = field(default_factory=Desk)
    breaks: list[str] = field(default_factory=list[str])

    async def of(self, customer: str) -> list[dict[str, Any]]:
        try:
            return self.desk.subscriptions(customer)
        except BadRequest as error:
            raise DeskRefused(error.message) from error

    async def cancel(self, subscription: str, key: str) -> dict[str, Any]:
        try:
            made = self.desk.cancel(subscription, key)
        except BadRequest as error:
            raise DeskRefused(error.message) from error
        if self.breaks:
            raise DeskUnreachable(self.breaks.pop())
        return made

    @property
    def cancelled(self) -> list[str]:
        return [each["subscription"] for each in self.desk.account("ann")["cancellations"]]


class SimulatedModel:
    """The simulated provider without a network. It keeps what it was sent."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []

    async def complete(self, body: bytes, principal: Principal, context: CallContext) -> Answer:
        self.bodies.append(json.loads(body))
        ask = openai.read("openai", self.bodies[-1])
        answer = openai.ChatWire().answer(Reply("chatcmpl-1", ask, compose(ask, Knobs(), 0), Used(input=10, output=5)))
        call_id = uuid4()
        return Answer(200, json.dumps(answer).encode(), {CALL_ID: str(call_id)}, call_id, 10_000)

    async def stream(self, body: bytes, principal: Principal, context: CallContext) -> StreamedAnswer:
        raise NotImplementedError

    def tools(self) -> dict[str, Any]:
        """The arguments of the tools that the last request offers, by name."""
        functions = [each["function"] for each in self.bodies[-1]["tools"]]
        return {each["name"]: each["parameters"]["properties"] for each in functions}


class Chat:
    """Runs of the assistant in one session, with the stores in memory."""

    def __init__(self) -> None:
        self.desk, self.model, self.store = DeskAtHand(), SimulatedModel(), InMemoryRuns()
        principals = Principals()
        self.starter = RunStarter(
            self.store, principals, Configurations(DEFINITION), "1", find=lambda _name: DEFINITION
        )
        money = RunMoney(InMemoryTreasury({}).envelopes, principals, freed=asyncio.sleep)
        services = Services(subscriptions=self.desk)
        self.executor = RunExecutor(
            self.store, self.model, principals, money, services, find=lambda _name: DEFINITION, agents=self._agents
        )

    async def _agents(self) -> list[str]:
        return ["demo"]

    async def say(self, message: str, session: str | None = "s") -> Run:
        run = await self.starter.start(StartRequest("demo", {"message": message}, session=session))
        return await self.go_on(run)

    async def go_on(self, run: Run) -> Run:
        """Another worker takes up what there is to do, as another process would."""
        await Worker(self.executor, poll_s=0.01, renew_s=0.01).work_off()
        return await self.store.find(run.id)


@pytest.fixture
def chat() -> Iterator[Chat]:
    with override_allow_model_requests(True):
        yield Chat()


async def test_a_run_knows_what_an_earlier_run_of_its_session_was_told(chat: Chat) -> None:
    first = await chat.say("My name is Ben. Please list_subscriptions of customer ann.")
    assert (first.state, first.error) == (State.SUCCEEDED, None)
    assert isinstance(first.output, str)
    assert len(chat.model.bodies) == 2  # a call, and the answer
    assert "cancel_subscription" in chat.model.tools()  # ann's are listed by now
    second = await chat.say("What did I tell you?")
    assert second.output == "You told me: My name is Ben. Please list_subscriptions of customer ann."
    stranger = await chat.say("What did I tell you?", session="another")
    assert "Ben" not in stranger.output
    assert list(chat.model.tools()) == ["list_subscriptions"]


async def test_it_asks_before_it_cancels_and_cancels_once(chat: Chat) -> None:
    await chat.say("list_subscriptions of customer ann, please")
    run = await chat.say("Then cancel_subscription ann-weekly.")
    assert chat.model.tools()["cancel_subscription"]["subscription"]["enum"] == [
        "ann-daily", "ann-weekly", "ann-archive",
    ]  # fmt: skip
    assert (run.state, run.wait_for, chat.desk.cancelled) == (State.WAITING, WaitFor.APPROVAL, [])
    question = await asked(chat.store, run)
    assert (question.tool, question.arguments) == ("cancel_subscription", {"subscription": "ann-weekly"})
    await approve(chat.store, run)
    run = await chat.go_on(run)
    assert (run.state, chat.desk.cancelled) == (State.SUCCEEDED, ["ann-weekly"])
    assert chat.desk.desk.account("ann")["repetitions"] == 0


async def test_what_a_person_refuses_does_not_happen(chat: Chat) -> None:
    await chat.say("list_subscriptions of customer ann")
    run = await chat.say("cancel_subscription ann-daily")
    question = await asked(chat.store, run)
    await chat.store.decide(question.id, Decision(False, question.digest, "ops", "She has paid for the year."))
    run = await chat.go_on(run)
    assert (run.state, chat.desk.cancelled) == (State.SUCCEEDED, [])
    assert "She has paid for the year." in json.dumps(chat.model.bodies[-1])


async def test_a_person_cannot_put_in_what_was_not_listed(chat: Chat) -> None:
    await chat.say("list_subscriptions of customer ann")
    run = await chat.say("cancel_subscription ann-daily")
    await approve(chat.store, run, {"subscription": "bea-daily"})
    run = await chat.go_on(run)
    assert "bea-daily was not listed" in json.dumps(chat.model.bodies[-1])
    assert chat.desk.desk.account("bea")["cancellations"] == []


async def test_after_a_lost_answer_the_run_stops_and_the_desk_drops_the_repetition_of_a_retry(chat: Chat) -> None:
    await chat.say("list_subscriptions of customer ann")
    run = await chat.say("cancel_subscription ann-daily")
    chat.desk.breaks.append("The line is dead.")
    await approve(chat.store, run)
    run = await chat.go_on(run)
    assert (run.state, chat.desk.cancelled) == (State.FAILED, ["ann-daily"])
    await chat.store.retry(run.id)
    run = await chat.go_on(run)
    assert (run.state, chat.desk.cancelled) == (State.SUCCEEDED, ["ann-daily"])
    assert chat.desk.desk.account("ann")["repetitions"] == 1


@pytest.mark.parametrize(
    ("desk", "said", "then"),
    [
        (SubscriptionDesk(), "No desk of subscriptions is configured", {"list_subscriptions"}),
        (DeskAtHand(), "ann-archive", {"list_subscriptions", "cancel_subscription"}),
    ],
)
async def test_it_can_cancel_once_it_has_listed_and_reads_why_it_cannot_list(
    desk: SubscriptionDesk, said: str, then: set[str]
) -> None:
    offered: list[set[str]] = []

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        offered.append({tool.name for tool in info.function_tools})
        returned = [part for part in messages[-1].parts if isinstance(part, ToolReturnPart)]
        if returned:
            return ModelResponse([TextPart(str(returned[0].content))])
        return ModelResponse([ToolCallPart("list_subscriptions", {"customer": "ann"})])

    task = DEFINITION.task(Message(message="What has ann?"), Services(subscriptions=desk))
    result = await DEFINITION.agent.run(task.prompt, deps=task.deps, model=FunctionModel(answer))
    assert said in result.output
    assert offered == [{"list_subscriptions"}, then]


def test_its_tools_say_what_they_are() -> None:
    assert DEFINITION.tools == {"list_subscriptions": Policy.READ, "cancel_subscription": Policy.ASK}
    assert DEFINITION.output_type is str
    for wrong in ({}, {"message": ""}, {"message": "x" * 20_001}, {"message": "hi", "history": []}):
        with pytest.raises(ValidationError):
            Message.model_validate(wrong)
