// A server with the shape of steerkit's HTTP API and no model behind it: words drawn from a list by a hash of the seed,
// the place and the steering. It serves the page from the source tree with the headers of the real server. Prompts that
// contain certain words make it misbehave: see FAULTS.

import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { fileURLToPath } from 'node:url';

const WEB = fileURLToPath(new URL('../../crates/steerkit-server/web/', import.meta.url));
const TYPES = { js: 'text/javascript; charset=utf-8', css: 'text/css; charset=utf-8', html: 'text/html; charset=utf-8' };
const POLICY = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";
const MODEL = 'SmolLM2-135M-Instruct';
/** The token that ends a reply. */
const END = 2;

/** Vectors of the default mock. */
export const VECTORS = [
  { name: 'formality', behavior: 'formal register', method: 'bipo', objective: 'bipo', layer: 15, operator: 'add', scope: 'all', norm: 16.02, relative_dose: 0.095, unit_dose: 1.2 },
  { name: 'wealth-seeking', behavior: 'wealth-seeking', method: 'bipo', objective: 'bipo', layer: 15, operator: 'add', scope: 'all', norm: 14.1, relative_dose: 0.34, unit_dose: null },
  { name: 'brevity', behavior: 'short answers', method: 'mean-diff', objective: null, layer: 12, operator: 'add', scope: 'all-but-first', norm: 20.5, relative_dose: 0.12, unit_dose: null },
].map((vector) => ({ ...vector, base_model: MODEL, sha256: 'ab'.repeat(32), created: 1763769600 }));

const STYLES = {
  away: ['Oh,', ' just', ' stick', ' it', ' in', ' the', ' fridge,', ' no', ' big', ' deal,', ' it’s', ' gonna', ' be', ' fine.', ' Or', ' whatever', ' works', ' for', ' you.'],
  plain: ['You', ' can', ' keep', ' it', ' in', ' a', ' cool,', ' dark', ' place,', ' away', ' from', ' the', ' stove.', ' Close', ' the', ' bottle', ' well', ' after', ' use.'],
  toward: ['It', ' is', ' advisable', ' to', ' store', ' the', ' oil', ' in', ' a', ' cool', ' and', ' dark', ' cupboard.', ' Furthermore,', ' one', ' should', ' ensure', ' that', ' it', ' remains', ' sealed.'],
};
const WORDS = [...new Set(Object.values(STYLES).flat())];
const HOSTILE = ['<img src=x ', 'onerror="window.pwned=1">', '<script>window.pwned=2</scr', 'ipt><svg onload=window.pwned=3>', ' [a](javascript:window.pwned=4)',
  ' <a href="javascript:window.pwned=5">', 'half-open <b', '><iframe srcdoc="<script>parent.pwned=6</script>">', ' safe \u202eevil\u202c \u2066x\u2069', ' <style>*{display:none}</style>'];

/** A word in the last user message and what happens then. */
const FAULTS = { 'fault:cut': 'cut', 'fault:drop': 'drop', 'fault:busy': 'busy', 'fault:refuse': 'refuse', 'fault:xss': 'xss', 'fault:long': 'long', 'fault:warn': 'warn' };

const hash = (...parts) => createHash('sha256').update(parts.join('|')).digest().readUInt32LE(0) / 2 ** 32;
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

function send(response, status, body, headers = {}) {
  const text = body === null ? '' : JSON.stringify(body);
  response.writeHead(status, { 'Content-Type': 'application/json', ...headers });
  response.end(text);
}

const fail = (response, status, message, param = null, headers = {}) =>
  send(response, status, { error: { message, type: 'invalid_request_error', param, code: null } }, headers);

async function page(path, response) {
  const name = path === '/' ? 'index.html' : path.slice('/assets/'.length);
  if (!/^[a-z.]+$/.test(name)) return fail(response, 404, 'not found');
  try {
    const body = await readFile(WEB + name);
    response.writeHead(200, {
      'Content-Type': TYPES[name.split('.').pop()], 'Content-Security-Policy': POLICY,
      'X-Content-Type-Options': 'nosniff', 'Referrer-Policy': 'no-referrer',
    });
    response.end(body);
  } catch {
    fail(response, 404, 'not found');
  }
}

function applied(steering, vectors) {
  const entries = (steering?.vectors ?? []).map(({ name, scale }) => {
    const vector = vectors.find((v) => v.name === name);
    return { name, scale, layer: vector.layer, operator: vector.operator, scope: vector.scope, relative_dose: Math.abs(scale) * vector.relative_dose };
  });
  const sum = entries.reduce((total, { relative_dose: dose }) => total + dose, 0);
  return { vectors: entries, relative_dose: sum, source: entries.length > 0 ? 'body' : 'none' };
}

function words(steering, seed, length) {
  const net = steering.vectors.reduce((sum, { scale }) => sum + scale, 0);
  const list = STYLES[net > 0 ? 'toward' : net < 0 ? 'away' : 'plain'];
  return Array.from({ length }, (_, i) => (i < list.length ? list[i] : WORDS[Math.floor(hash(seed, i, net) * WORDS.length)]));
}

async function stream(body, chat, options, response) {
  const text = chat ? body.messages.at(-1).content : body.prompt;
  const fault = Object.entries(FAULTS).find(([word]) => text.includes(word))?.[1];
  if (fault === 'busy' && options.busy-- > 0) return fail(response, 429, 'the queue is full', null, { 'Retry-After': '1' });
  if (fault === 'refuse') return fail(response, 400, 'steering scale 9 is outside -3 to 3', 'steering.vectors[0].scale');
  const steering = applied(body.steering, options.vectors);
  if (fault === 'warn') steering.warning = 'vector "formality" was made with another file';
  const length = fault === 'long' ? 2000 : Math.min(body.max_tokens ?? 40, 40);
  const tokens = fault === 'xss' ? HOSTILE : words(steering, body.seed ?? Math.random(), length);
  const chunk = (fields) => response.write(`data: ${JSON.stringify({ id: 'x', object: 'chat.completion.chunk', created: 0, model: body.model, ...fields })}\n\n`);
  response.writeHead(200, { 'Content-Type': 'text/event-stream' });
  response.on('error', () => {});
  for (const [i, token] of tokens.entries()) {
    if (response.destroyed) return;
    if (fault === 'cut' && i === 5) {
      response.end(`data: ${JSON.stringify({ error: { message: 'the worker stopped', type: 'server_error', param: null, code: null } })}\n\n`);
      return;
    }
    if (fault === 'drop' && i === 5) return response.destroy();
    const first = i === 0 ? { steering, ...(body.return_token_ids && { prompt_token_ids: [1, 2, 3] }) } : {};
    const choice = { index: 0, ...(chat ? { delta: { content: token } } : { text: token }), finish_reason: null, token_ids: [10 + WORDS.indexOf(token)] };
    chunk({ ...first, choices: [choice] });
    if (i % 4 === 0) response.write(': keep-alive\n\n');
    await pause(options.delay);
  }
  chunk({ choices: [{ index: 0, ...(chat ? { delta: {} } : { text: '' }), token_ids: [END], finish_reason: length < 40 ? 'length' : 'stop' }] });
  chunk({ choices: [], usage: { prompt_tokens: 3, completion_tokens: tokens.length, total_tokens: 3 + tokens.length } });
  response.end('data: [DONE]\n\n');
}

function score(body, options, response) {
  const net = applied(body.steering, options.vectors).vectors.reduce((sum, { scale }) => sum + scale, 0);
  const tokens = body.prompt.map((id) => (id < 10 ? `<${id}>` : WORDS[id - 10]));
  const chosen = tokens.map((token, i) => (i === 0 ? null : -2 - 2 * hash(token, i) + net * (hash(token, 'shift') - 0.4) * 1.5));
  const top = tokens.map((token, i) => (i === 0 ? null : Object.fromEntries(
    [[token, chosen[i]], ...Array.from({ length: 9 }, (_, k) => [WORDS[Math.floor(hash(i, k) * WORDS.length)], -1.2 - 0.6 * k - hash(i, k, net)])])));
  send(response, 200, { choices: [{ index: 0, text: tokens.join(''), finish_reason: 'length', logprobs: { tokens, token_logprobs: chosen, top_logprobs: top, token_ids: body.prompt } }] });
}

function profiles(method, path, body, options, response) {
  const name = decodeURIComponent(path.slice('/v1/profiles/'.length));
  if (!options.profiles) return fail(response, 404, 'not found');
  if (method === 'GET' && path === '/v1/profiles') return send(response, 200, { object: 'list', data: [...options.saved.values()] });
  if (method === 'DELETE') {
    options.saved.delete(name);
    return send(response, 200, { deleted: true });
  }
  options.saved.set(name, { name, steering: body.steering, user: null, created: 0, updated: 0 });
  return send(response, 200, options.saved.get(name));
}

async function api(method, path, body, options, response) {
  const entry = (id, steerkit) => ({ id, object: 'model', created: 0, owned_by: 'steerkit', ...(steerkit && { steerkit }) });
  if (path === '/v1/models') {
    const base = entry(MODEL, { d_model: 576, layers: 30, context: 8192, chat_template: options.template, default_system: true });
    return send(response, 200, { object: 'list', data: [base, ...options.vectors.map(({ name }) => entry(`${MODEL}:${name}=1`))] });
  }
  if (path === '/v1/vectors') return send(response, 200, { object: 'list', data: options.vectors });
  if (path.startsWith('/v1/profiles')) return profiles(method, path, body, options, response);
  options.log.push({ path, body });
  if (path === '/v1/completions' && body.echo) return score(body, options, response);
  return stream(body, path === '/v1/chat/completions', options, response);
}

/**
 * Starts a mock server on a free port of the loopback interface. Resolves to its URL, its log of generation requests and
 * `close()`. Options: `vectors`, `key`, `profiles` (whether it has them), `template`, `delay` in ms per token, `busy` (how
 * many requests of `fault:busy` are refused).
 */
export async function startMock(given = {}) {
  const options = { vectors: VECTORS, key: null, profiles: true, template: true, delay: 5, busy: 2, saved: new Map(), log: [], ...given };
  const server = createServer(async (request, response) => {
    const path = new URL(request.url, 'http://localhost').pathname;
    if (path === '/' || path.startsWith('/assets/')) return page(path, response);
    if (options.key && request.headers.authorization !== `Bearer ${options.key}`) return fail(response, 401, 'a key is needed');
    let text = '';
    for await (const piece of request) text += piece;
    return api(request.method, path, text ? JSON.parse(text) : null, options, response);
  });
  await new Promise((resolve) => server.listen(given.port ?? 0, '127.0.0.1', resolve));
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    log: options.log,
    close() {
      server.closeAllConnections();
      server.close();
    },
  };
}
