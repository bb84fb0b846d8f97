// The official client of AG-UI, unchanged: a person asks for something destructive, sees the interrupt, and answers it.
import { HttpAgent } from "@ag-ui/client";

const [url, agentKey, adminKey] = process.argv.slice(2);
const agent = new HttpAgent({ url: `${url}/agents/news/ag-ui`, threadId: "t-js", headers: { authorization: `Bearer ${agentKey}` } });
const deltas = [];
agent.subscribe({ onTextMessageContentEvent: ({ event }) => void deltas.push(event.delta) });

agent.addMessage({ id: "1", role: "user", content: "wipe old" });
await agent.runAgent();
const interrupts = agent.pendingInterrupts;

agent.headers = { authorization: `Bearer ${adminKey}` };
const resume = interrupts.map((each) => ({ interruptId: each.id, status: "resolved", payload: { approved: true } }));
const resumed = await agent.runAgent({ resume });

agent.headers = { authorization: `Bearer ${agentKey}` };
agent.addMessage({ id: "2", role: "user", content: "thanks" });
const { newMessages } = await agent.runAgent();

console.log(
  JSON.stringify({
    tools: interrupts.map((each) => each.metadata.tool),
    pending: agent.pendingInterrupts.length,
    result: resumed.result,
    last: newMessages.map((each) => each.content),
    roles: agent.messages.map((each) => each.role),
    text: deltas.join("|"),
  }),
);
