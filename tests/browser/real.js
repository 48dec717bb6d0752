// Starts `steerkit serve` and runs the page's tests against it, then stops it.
//
//   node real.js STEERKIT [MODEL VECTORS]
//
// By default the model is the tiny one of tests/data, with a vector that is made here.

import { spawn } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

const TINY = fileURLToPath(new URL('../data/tiny-llama-gguf/tiny-llama-f32.gguf', import.meta.url));
/** Numbers of a vector for it. */
const WIDTH = 64;

/** A safetensors file with one direction, after block 1. */
function vector() {
  const direction = Float32Array.from({ length: WIDTH }, (_, i) => -2 * Math.sin(2.59 * i));
  const head = Buffer.from(JSON.stringify({ 'direction.1': { dtype: 'F32', shape: [WIDTH], data_offsets: [0, 4 * WIDTH] } }));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(head.length));
  return Buffer.concat([length, head, Buffer.from(direction.buffer)]);
}

const ended = (child) => new Promise((resolve) => child.on('exit', (code) => resolve(code ?? 1)));

const [steerkit, model = TINY, given] = process.argv.slice(2);
const made = await mkdtemp(join(tmpdir(), 'steerkit-page-'));
await writeFile(join(made, 'wave.safetensors'), vector());
const server = spawn(steerkit, ['serve', '--model', model, '--vectors', given ?? made, '--port', '0', '--json'], { stdio: ['ignore', 'pipe', 'inherit'] });
const stopped = ended(server);
let code = 1;
for await (const line of createInterface({ input: server.stdout })) {
  const { url } = JSON.parse(line);
  code = await ended(spawn(process.execPath, ['--test', 'page.test.js'], { stdio: 'inherit', env: { ...process.env, STEERKIT_URL: url } }));
  server.kill();
  break;
}
await stopped;
await rm(made, { recursive: true });
process.exit(code);
