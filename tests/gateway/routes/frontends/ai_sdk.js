// The official chat of Vercel's AI SDK, unchanged: an approval is asked and answered, and a stream is taken up again.
import { AbstractChat, DefaultChatTransport, lastAssistantMessageIsCompleteWithApprovalResponses } from "ai";

const [url, agentKey, adminKey] = process.argv.slice(2);
let key = agentKey;

class State {
  status = "ready";
  error = undefined;
  messages = [];
  pushMessage = (message) => void (this.messages = [...this.messages, message]);
  popMessage = () => void (this.messages = this.messages.slice(0, -1));
  replaceMessage = (index, message) => void (this.messages = this.messages.with(index, message));
  snapshot = (value) => structuredClone(value);
}
class Chat extends AbstractChat {
  constructor(options) {
    super({ ...options, state: new State() });
  }
}

const transport = new DefaultChatTransport({
  api: `${url}/agents/news/ai-sdk`,
  headers: () => ({ authorization: `Bearer ${key}` }),
});
const errors = [];
const onError = (error) => void errors.push(String(error));
const sendAutomaticallyWhen = lastAssistantMessageIsCompleteWithApprovalResponses;
const chat = new Chat({ id: "c-js", transport, onError, sendAutomaticallyWhen });
const settled = async (done) => {
  while (!done()) await new Promise((resolve) => setTimeout(resolve, 10));
};
const parts = () => chat.messages.at(-1).parts;
const texts = () => parts().filter((part) => part.type === "text").map((part) => part.text);

await chat.sendMessage({ text: "wipe old" });
const asked = parts().find((part) => part.state === "approval-requested");
key = adminKey;
await chat.addToolApprovalResponse({ id: asked.approval.id, approved: true });
await settled(() => (chat.status === "ready" && texts().length > 0) || errors.length > 0);
const answered = { texts: texts(), states: parts().map((part) => part.state ?? part.type), messages: chat.messages.length };

key = agentKey;
await chat.sendMessage({ text: "wipe all" });
const again = parts().find((part) => part.state === "approval-requested");
key = adminKey;
await chat.addToolApprovalResponse({ id: again.approval.id, approved: false, reason: "No." });
await settled(() => (chat.status === "ready" && texts().length > 0) || errors.length > 0);
const denied = { texts: texts(), states: parts().map((part) => part.state ?? part.type) };

key = agentKey;
const idle = await transport.reconnectToStream({ chatId: "c-js" });
console.log(
  JSON.stringify({ tool: asked.toolName, input: asked.input, answered, denied, idle: idle === null, errors }),
);
