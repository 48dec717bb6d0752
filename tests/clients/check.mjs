// The openai package for Node against a running server; called by check.py.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const require = createRequire(new URL("./node/", import.meta.url));
const { default: OpenAI } = await import(pathToFileURL(require.resolve("openai")));
const [url, vector, question, tokens, plain, steered] = process.argv.slice(2);

const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const ask = { model: "base", messages: [{ role: "user", content: question }], max_tokens: Number(tokens), temperature: 0 };
const steering = (scale) => ({ vectors: [{ name: vector, scale }] });

const text = async (more, options) => (await client.chat.completions.create({ ...ask, ...more }, options)).choices[0].message.content;
assert.equal(await text({}), plain);
assert.equal(await text({ steering: steering(1) }), steered);
assert.equal(await text({}, { headers: { "X-Steer": `${vector}=1` } }), steered);
assert.equal(await text({ model: `base:${vector}=1` }), steered);

let streamed = "";
for await (const chunk of await client.chat.completions.create({ ...ask, steering: steering(1), stream: true })) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
}
assert.equal(streamed, steered);

// NaN becomes null on the wire.
await assert.rejects(text({ steering: steering(NaN) }), (error) => error.status === 400 && error.param === "steering.vectors[0].scale");
