// The openai package of npm, unmodified, against a served API: node with_node.mjs URL
import assert from "node:assert/strict";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "count from 3 to 6" }];
const model = "default";

const whole = await client.chat.completions.create({ model, messages });
assert.equal(whole.choices[0].message.content, "3 4 5 6");

let text = "";
for await (const chunk of await client.chat.completions.create({ model, messages, stream: true })) {
  text += chunk.choices[0].delta.content ?? "";
}
assert.equal(text, "3 4 5 6");

const parameters = { type: "object", properties: { city: { type: "string" } } };
const tools = [{ type: "function", function: { name: "get_weather", parameters } }];
const called = await client.chat.completions.stream({ model, messages, tools }).finalChatCompletion();
assert.deepEqual(JSON.parse(called.choices[0].message.tool_calls[0].function.arguments), { city: "Oslo" });

const schema = { type: "object", properties: { city: { type: "string" }, rain: { type: "boolean" } } };
const format = { type: "json_schema", json_schema: { name: "weather", strict: true, schema } };
const structured = await client.chat.completions.create({ model, messages, response_format: format });
assert.deepEqual(JSON.parse(structured.choices[0].message.content), { city: "Oslo", rain: true });

const response = await client.responses.create({ model, input: "count from 3 to 6" });
assert.equal(response.output_text, "3 4 5 6");

await assert.rejects(client.chat.completions.create({ model: "gpt-4o", messages }), OpenAI.NotFoundError);
await assert.rejects(client.chat.completions.create({ model, messages, temperature: 9 }), OpenAI.BadRequestError);
console.log("openai of npm: fine");
