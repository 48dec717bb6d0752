// Talking to the server: JSON requests, the key, and streams of server-sent events.

const KEY = 'steerkit-key';
let askKey = async () => false;

/** What went wrong, in the server's words where it gave any. `retryAfter` is in seconds. */
export class ApiError extends Error {
  constructor(message, { status = 0, param = null, retryAfter = null } = {}) {
    super(message);
    this.name = 'ApiError';
    this.status = status;
    this.param = param;
    this.retryAfter = retryAfter;
  }
}

/** Splits a stream of server-sent events into the texts of their `data` fields, wherever the pieces break. */
export class SseParser {
  #rest = '';
  #data = [];

  /** Takes the next piece; returns the data of every event that is complete now. */
  push(piece) {
    const events = [];
    this.#rest += piece;
    // A CR at the end may be the first half of CRLF.
    const lines = this.#rest.split(/\r\n|\n|\r(?!$)/);
    this.#rest = lines.pop();
    for (const line of lines) {
      if (line === '') {
        if (this.#data.length > 0) events.push(this.#data.join('\n'));
        this.#data = [];
      } else if (line.startsWith('data:')) {
        this.#data.push(line.slice(line[5] === ' ' ? 6 : 5));
      }
    }
    return events;
  }
}

/** The key of this tab, or null. */
export const storedKey = () => sessionStorage.getItem(KEY);

/** Keeps the key for this tab; an empty one is forgotten. */
export function storeKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

/** Sets what asks the user for a key: a function that resolves to true when there is a new one. */
export function onKeyNeeded(ask) {
  askKey = ask;
}

/** Seconds of a Retry-After header, at least 1; null where there is none. */
export function retrySeconds(header, now = Date.now()) {
  if (header == null) return null;
  const seconds = /^\d+$/.test(header.trim()) ? Number(header) : (Date.parse(header) - now) / 1000;
  return Number.isFinite(seconds) ? Math.min(3600, Math.max(1, Math.ceil(seconds))) : null;
}

async function toError(response) {
  const retryAfter = retrySeconds(response.headers.get('retry-after'));
  const text = await response.text().catch(() => '');
  let error;
  try {
    ({ error } = JSON.parse(text));
  } catch {
    // Not JSON: a proxy's page, say. The status has to do.
  }
  const message = typeof error?.message === 'string' ? error.message : `the server answered ${response.status}`;
  return new ApiError(message, { status: response.status, param: error?.param ?? null, retryAfter });
}

async function send(path, { method = 'GET', body, signal } = {}) {
  const key = storedKey();
  const headers = {
    ...(key && { Authorization: `Bearer ${key}` }),
    ...(body !== undefined && { 'Content-Type': 'application/json' }),
  };
  try {
    return await fetch(path, { method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new ApiError('the server cannot be reached');
  }
}

/** The server's response to a request. Asks for a key until one is accepted or none is given. Throws `ApiError`. */
export async function request(path, options = {}) {
  let response = await send(path, options);
  while (response.status === 401 && (await askKey())) response = await send(path, options);
  if (!response.ok) throw await toError(response);
  return response;
}

/** The same, as JSON; null for an empty reply. */
export async function json(path, options) {
  const text = await (await request(path, options)).text();
  if (text === '') return null;
  try {
    return JSON.parse(text);
  } catch {
    throw new ApiError(`the reply to ${path} is not JSON`);
  }
}

/** The chunks of a streamed reply. Throws `ApiError` for an error event and for a stream that ends without `[DONE]`. */
export async function* stream(path, body, signal) {
  const response = await request(path, { method: 'POST', body, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const parser = new SseParser();
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new ApiError('the stream ended early');
      for (const data of parser.push(value)) {
        if (data === '[DONE]') return;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new ApiError(chunk.error.message ?? 'the stream was cut', { param: chunk.error.param });
        yield chunk;
      }
    }
  } catch (error) {
    if (error.name === 'AbortError' || error instanceof ApiError) throw error;
    throw new ApiError('the stream was cut');
  } finally {
    reader.cancel().catch(() => {});
  }
}

/**
 * Streams a reply into `reply`: text, token ids, the applied steering, why it ended, usage and seconds. `onChange` is
 * called after each chunk. What arrived stays in `reply` when it throws.
 */
export async function generate({ path, body }, reply, { signal, onChange }) {
  const started = performance.now();
  const wire = { ...body, stream: true, stream_options: { include_usage: true }, return_token_ids: true };
  for await (const chunk of stream(path, wire, signal)) {
    const choice = chunk.choices?.[0];
    reply.promptIds = chunk.prompt_token_ids ?? reply.promptIds;
    reply.steering = chunk.steering ?? reply.steering;
    reply.usage = chunk.usage ?? reply.usage;
    if (choice) {
      reply.text += choice.delta?.content ?? choice.text ?? '';
      if (choice.token_ids) reply.tokenIds.push(...choice.token_ids);
      reply.finish = choice.finish_reason ?? reply.finish;
    }
    reply.seconds = (performance.now() - started) / 1000;
    onChange(reply);
  }
}

/** A reply to stream into. */
export const newReply = () => ({
  text: '', promptIds: null, tokenIds: [], steering: null, finish: null, usage: null, seconds: 0,
});
