// The official `openai` package for Node, unchanged but for base URL and key, on the server at $BASE_URL.
import assert from "node:assert/strict";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: process.env.API_KEY, maxRetries: 0 });
const user = (content) => [{ role: "user", content }];
const chat = (content, more = {}) =>
  client.chat.completions.create({ model: "chat", messages: user(content), ...more });
const weather = {
  type: "function",
  function: {
    name: "weather",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
};

const checks = {
  async plain() {
    const answer = await chat("hello", { temperature: 0.5, top_p: 0.9, seed: 3, max_completion_tokens: 8, n: 2 });
    assert.deepEqual(answer.choices.map((choice) => choice.message.content), ["You said: hello", "You said: hello"]);
    assert.equal(answer.model, "chat");
    assert.equal(answer.usage.completion_tokens, 6);
  },

  async stream() {
    const stream = await chat("hello", { stream: true, stream_options: { include_usage: true } });
    let text = "";
    let usage;
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta?.content ?? "";
      usage = chunk.usage ?? usage;
    }
    assert.equal(text, "You said: hello");
    assert.equal(usage.completion_tokens, 3);
  },

  async tools() {
    const asked = '!call weather {"city": "Oslo"}';
    const answer = await chat(asked, { tools: [weather], tool_choice: "auto" });
    const { message, finish_reason } = answer.choices[0];
    assert.equal(finish_reason, "tool_calls");
    assert.equal(message.content, null);
    assert.deepEqual(JSON.parse(message.tool_calls[0].function.arguments), { city: "Oslo" });
    const told = await client.chat.completions.create({
      model: "chat",
      tools: [weather],
      messages: [...user(asked), message,
        { role: "tool", tool_call_id: message.tool_calls[0].id, content: "sunny" }, ...user("!echo Sunny.")],
    });
    assert.equal(told.choices[0].message.content, "Sunny.");
  },

  async runTools() {
    const places = [];
    const runner = client.chat.completions.runTools({
      model: "chat",
      messages: user('!call weather {"city": "Oslo"}'),
      tools: [{
        type: "function",
        function: { ...weather.function, parse: JSON.parse, function: ({ city }) => (places.push(city), "sunny") },
      }],
    }, { maxChatCompletions: 2 });
    await runner.done().catch(() => {});    // the fake model calls for ever
    assert.equal(places[0], "Oslo");
  },

  async streamedTools() {
    const stream = client.chat.completions.stream({
      model: "chat", messages: user('!echo Well. !call weather {"city": "Oslo"}'), tools: [weather],
    });
    const { message } = (await stream.finalChatCompletion()).choices[0];
    assert.equal(message.content, "Well.");
    assert.deepEqual(JSON.parse(message.tool_calls[0].function.arguments), { city: "Oslo" });
  },

  async parse() {
    const answer = await client.chat.completions.parse({
      model: "chat", messages: user('!echo {"a": 1}'),
      response_format: { type: "json_schema", json_schema: { name: "a", strict: true, schema: { type: "object" } } },
    });
    assert.deepEqual(answer.choices[0].message.parsed ?? JSON.parse(answer.choices[0].message.content), { a: 1 });
  },

  async prompts() {
    const answer = await client.completions.create({ model: "chat", prompt: "one two", echo: true });
    assert.equal(answer.choices[0].text, "one twoYou said: one two");
  },

  async embeddings() {
    const found = await client.embeddings.create({ model: "vectors", input: ["the cat", "a dog"], dimensions: 4 });
    assert.deepEqual(found.data.map((one) => one.embedding.length), [4, 4]);
  },

  async models() {
    const names = [];
    for await (const model of client.models.list()) names.push(model.id);
    assert.deepEqual(names.slice(0, 3), ["chat", "starter", "vectors"]);
    assert.equal((await client.models.retrieve("chat")).owned_by, "parley");
  },

  async session() {
    const headers = { "X-Session-Id": "node" };
    for (const text of ["My name is Ada.", "What is my name?"]) {
      const answer = await client.chat.completions.create({ model: "chat", messages: user(text) }, { headers });
      if (text.endsWith("?")) assert.equal(answer.choices[0].message.content, "Your name is Ada.");
    }
  },

  async errors() {
    const refused = [
      [() => chat("x", { model: "gpt-4o" }), OpenAI.NotFoundError, "model_not_found"],
      [() => chat("x", { temperature: 3 }), OpenAI.BadRequestError, "invalid_request"],
      [() => chat("x", { model: "vectors" }), OpenAI.UnprocessableEntityError, "embedding_profile"],
      [() => chat("!fail rate_limited"), OpenAI.RateLimitError, "rate_limited"],
      [() => chat("!fail unavailable", { stream: true }), OpenAI.InternalServerError, "unavailable"],
    ];
    for (const [ask, kind, code] of refused) {
      await assert.rejects(ask, (error) => error instanceof kind && error.code === code, code);
    }
    const stranger = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: "ply_wrong", maxRetries: 0 });
    await assert.rejects(() => stranger.models.list(), OpenAI.AuthenticationError);
    const stream = await chat("!tokens 5 !close 3", { stream: true });
    await assert.rejects(async () => { for await (const _ of stream); }, OpenAI.APIError);
  },

  async retries() {
    const fetched = [];
    const retrying = new OpenAI({
      baseURL: process.env.BASE_URL, apiKey: process.env.API_KEY, maxRetries: 1,
      fetch: async (url, options) => {
        const response = await fetch(url, options);
        fetched.push(response.headers.get("retry-after"));
        return response;
      },
    });
    const asked = { model: "chat", messages: user("!fail unavailable") };
    await assert.rejects(() => retrying.chat.completions.create(asked), OpenAI.InternalServerError);
    assert.deepEqual(fetched, ["1", "1"]);
  },
};

for (const [name, check] of Object.entries(checks)) {
  try {
    await check();
  } catch (error) {
    console.error(`${name}: ${error.stack}`);
    process.exitCode = 1;
  }
}
console.log(Object.keys(checks).join(" "));
