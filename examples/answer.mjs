// Parley from JavaScript (Node 18 or newer, or a browser on the same origin): a streamed answer.
//   API_KEY=ply_... node examples/answer.mjs "Hello" [session]
const [prompt = "Hello", session_id = null] = process.argv.slice(2);
const url = process.env.PARLEY_URL ?? "http://127.0.0.1:5000";

const response = await fetch(`${url}/answer`, {
  method: "POST",
  headers: { Authorization: process.env.API_KEY ?? "", "Content-Type": "application/json" },
  body: JSON.stringify({ prompt, session_id, stream: true }),
});
if (!response.ok) {
  console.error(`${response.status}: ${(await response.json()).message}`);
  process.exit(1);
}

let rest = "";
for await (const text of response.body.pipeThrough(new TextDecoderStream())) {
  const lines = (rest + text).split("\n");
  rest = lines.pop();
  for (const line of lines.filter((one) => one.startsWith("data: "))) {
    const event = JSON.parse(line.slice(6));
    if (event.error) throw new Error(event.error.message);
    process.stdout.write(event.delta ?? "");
    if (event.done) console.log(`\n(${event.model}, ${event.usage.total_tokens} tokens, ${event.finish_reason})`);
  }
}
