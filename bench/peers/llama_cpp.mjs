// Times sampling of steerkit and of llama.cpp on the same GGUF file, one after the other, in rounds.
//
//     npm install node-llama-cpp        # in any folder; then, from that folder:
//     node .../bench/peers/llama_cpp.mjs --model MODEL.gguf [--bf16-model MODEL-BF16.gguf]
//         [--steerkit .../target/release/steerkit] [--batches 1,16,32] [--threads 2] [--tokens 64] [--rounds 3]
//
// Prompts of 100 tokens, no two alike; steerkit writes every text under a vector of its own. The table gives medians
// over the rounds and their ratio; with --bf16-model, llama.cpp's prefill of that file is a row of its own. Without
// node-llama-cpp (prebuilt llama.cpp for the CPU) only steerkit is timed. Run it on a quiet machine.
import { execFileSync } from "node:child_process";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import { parseArgs } from "node:util";

const { values: options } = parseArgs({
  options: {
    model: { type: "string" },
    "bf16-model": { type: "string" },
    steerkit: { type: "string", default: "steerkit" },
    batches: { type: "string", default: "1,16,32" },
    threads: { type: "string", default: "2" },
    tokens: { type: "string", default: "64" },
    rounds: { type: "string", default: "3" },
    precision: { type: "string", default: "auto" },
  },
});
if (!options.model) {
  console.error("--model is needed: a GGUF file");
  process.exit(2);
}
const PROMPT = 100;
const tokens = Number(options.tokens);
const threads = Number(options.threads);

function steerkit(batch) {
  const args = ["bench", "decode", "--model", options.model, "--batch", batch, "--plans", batch, "--prompt-tokens",
    PROMPT, "--tokens", tokens, "--precision", options.precision, "--threads", threads, "--json", "--quiet"];
  const out = execFileSync(options.steerkit, args.map(String), { encoding: "utf8" });
  const { prefill_tok_s, decode_tok_s, precision } = JSON.parse(out.trim().split("\n").at(-1));
  return { prefill: prefill_tok_s, decode: decode_tok_s, precision };
}

async function library() {
  try {
    const path = createRequire(`${process.cwd()}/`).resolve("node-llama-cpp");
    return await import(pathToFileURL(path));
  } catch (error) {
    console.error(`llama.cpp is skipped: node-llama-cpp cannot be loaded from ${process.cwd()} (${error.code})`);
    return null;
  }
}

// Prompt tokens per second, then written tokens per second of all texts together.
async function llamaCpp(model, batch) {
  const context = await model.createContext({
    sequences: batch, contextSize: PROMPT + tokens + 8, batchSize: 512, threads,
  });
  const sequences = Array.from({ length: batch }, () => context.getSequence());
  const prompts = sequences.map((_, i) => Array.from({ length: PROMPT }, (_, p) => 1000 + (p * 911 + i * 7919) % 40000));
  let began = performance.now();
  await Promise.all(sequences.map((s, i) => s.evaluateWithoutGeneratingNewTokens(prompts[i])));
  const prefill = (batch * PROMPT * 1e3) / (performance.now() - began);
  began = performance.now();
  await Promise.all(sequences.map(async (sequence) => {
    let written = 0;
    for await (const _ of sequence.evaluate([500], { temperature: 0, yieldEogToken: true })) {
      written += 1;
      if (written === tokens) break;
    }
  }));
  const decode = (batch * tokens * 1e3) / (performance.now() - began);
  await context.dispose();
  return { prefill, decode };
}

const median = (x) => x.toSorted((a, b) => a - b)[Math.floor(x.length / 2)];
const peer = await library();
const llama = peer && await peer.getLlama({ gpu: false, build: "never", logLevel: "error", maxThreads: threads });
const load = (path) => llama.loadModel({ modelPath: path, gpuLayers: 0 });
const peerModel = llama && await load(options.model);
const bf16Model = llama && options["bf16-model"] && await load(options["bf16-model"]);

const found = {};
const add = (row, who, value) => (((found[row] ??= {})[who] ??= []).push(value));
for (let round = 0; round < Number(options.rounds); round += 1) {
  for (const batch of options.batches.split(",").map(Number)) {
    const ours = steerkit(batch);
    add(`prefill, ${batch} texts (${ours.precision})`, "steerkit", ours.prefill);
    add(`decode, ${batch} texts (${ours.precision})`, "steerkit", ours.decode);
    if (peerModel) {
      const theirs = await llamaCpp(peerModel, batch);
      add(`prefill, ${batch} texts (${ours.precision})`, "llama.cpp", theirs.prefill);
      add(`decode, ${batch} texts (${ours.precision})`, "llama.cpp", theirs.decode);
    }
    if (bf16Model) {
      const theirs = await llamaCpp(bf16Model, batch);
      add(`prefill, ${batch} texts, llama.cpp on bf16`, "steerkit", ours.prefill);
      add(`prefill, ${batch} texts, llama.cpp on bf16`, "llama.cpp", theirs.prefill);
      add(`decode, ${batch} texts, llama.cpp on bf16`, "steerkit", ours.decode);
      add(`decode, ${batch} texts, llama.cpp on bf16`, "llama.cpp", theirs.decode);
    }
  }
}
for (const [row, times] of Object.entries(found)) {
  const ours = median(times.steerkit);
  const theirs = times["llama.cpp"] && median(times["llama.cpp"]);
  const ratio = theirs ? `llama.cpp ${theirs.toFixed(1)} tok/s, ratio ${(ours / theirs).toFixed(2)}` : "";
  console.log(`${row.padEnd(40)} steerkit ${ours.toFixed(1)} tok/s  ${ratio}`);
}
process.exit(0);
