// Parley from JavaScript (Node 18 or newer): a streamed answer.
//   API_KEY=ply_... node examples/answer.mjs "Hello" [session]
const [prompt, session_id = null] = process.argv.slice(2);
const url = (process.env.PARLEY_URL || "http://127.0.0.1:5000").replace(/\/+$/, "");

function fail(message, status = 1) {
  console.error(message);
  process.exit(status);
}

if (!prompt) fail('usage: API_KEY=ply_... node examples/answer.mjs "PROMPT" [SESSION]', 2);
if (!process.env.API_KEY) fail("set API_KEY to a key, for example from: .venv/bin/python main.py keys create --name node", 2);

const response = await fetch(`${url}/answer`, {
  method: "POST",
  headers: { Authorization: process.env.API_KEY, "Content-Type": "application/json" },
  body: JSON.stringify({ prompt, session_id, stream: true }),
}).catch((error) => fail(error.cause?.code ? `no server answers at ${url}; set PARLEY_URL` : `${url}: ${error.message}`));
if (!response.ok) {
  const told = await response.json().catch(() => null);
  fail(told?.message ? `${response.status}: ${told.message}` : `what answers at ${url} is no Parley server`);
}

let rest = "";
let done = false;
try {
  for await (const text of response.body.pipeThrough(new TextDecoderStream())) {
    const lines = (rest + text).split("\n");
    rest = lines.pop();
    for (const line of lines.filter((one) => one.startsWith("data: "))) {
      const event = JSON.parse(line.slice(6));
      if (event.error) fail(event.error.message);
      if (event.queue) console.error(`waiting: position ${event.queue.position}, about ${event.queue.eta_seconds} s`);
      process.stdout.write(event.delta ?? "");
      done ||= event.done === true;
      if (event.done) console.log(`\n(${event.model}, ${event.usage.total_tokens} tokens, ${event.finish_reason})`);
    }
  }
} catch (error) {
  fail(`the answer broke off: ${error.message}`);
}
if (!done) fail("the answer broke off");
