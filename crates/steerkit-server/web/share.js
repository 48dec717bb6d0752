// Links that carry the state of the page in their fragment, which browsers do not send to any server. A link fills in
// the form and never sends anything by itself; what it says is checked like any other input.

import { SAMPLING, clampScale, parseSampling } from './state.js';
import { stripped } from './text.js';

/** Caps on what a link may carry, in characters and entries. */
export const LIMITS = { fragment: 24000, prompt: 8000, system: 4000, vectors: 16 };

/** Names of vectors and profiles: the server's registry names. */
export const NAME = /^[a-z0-9._-]{1,64}$/;

/** The fragment, without `#`, for what is set: view, steering entries, compared vector, prompt, system, sampling. */
export function encodeShare({ view, steering, vector, prompt, system, sampling }) {
  const fields = new URLSearchParams({ v: '1', view });
  if (steering.length > 0) fields.set('steer', steering.map(({ name, scale }) => `${name}=${scale}`).join(','));
  if (vector) fields.set('vector', vector);
  if (prompt) fields.set('prompt', prompt.slice(0, LIMITS.prompt));
  if (system) fields.set('system', system.slice(0, LIMITS.system));
  for (const name of Object.keys(SAMPLING)) {
    if (sampling[name] != null) fields.set(name, String(sampling[name]));
  }
  return fields.toString();
}

function readSteering(text, dropped) {
  const entries = new Map();
  const parts = text ? text.split(',') : [];
  for (const part of parts.slice(0, LIMITS.vectors)) {
    const [, name, scale] = /^([^=]*)=([+-]?\d{1,4}(?:\.\d{1,6})?)$/.exec(part) ?? [];
    if (NAME.test(name ?? '') && !entries.has(name)) entries.set(name, clampScale(Number(scale)));
    else dropped.push('a vector');
  }
  if (parts.length > LIMITS.vectors) dropped.push(`vectors past the first ${LIMITS.vectors}`);
  return [...entries].map(([name, scale]) => ({ name, scale }));
}

function readText(fields, name, dropped) {
  const text = fields.get(name) ?? '';
  const clean = stripped(text).slice(0, LIMITS[name]);
  if (clean !== text) dropped.push(`part of the ${name}`);
  return clean;
}

function readSampling(fields, dropped) {
  const sampling = {};
  for (const name of Object.keys(SAMPLING)) {
    if (!fields.has(name)) continue;
    const text = fields.get(name);
    const value = /^\d{1,10}(\.\d{1,6})?$/.test(text) ? parseSampling(name, text) : null;
    if (value == null) dropped.push(name);
    else sampling[name] = value;
  }
  return sampling;
}

/** What a fragment asks for, checked and capped, with the list of what was dropped; null when it is no such link. */
export function decodeShare(fragment) {
  const text = fragment.replace(/^#/, '');
  if (!/^v=\d+(&|$)/.test(text)) return null;
  const empty = { view: 'chat', steering: [], vector: '', prompt: '', system: '', sampling: {} };
  if (text.length > LIMITS.fragment) return { ...empty, dropped: ['everything: the link is too long'] };
  const fields = new URLSearchParams(text);
  if (fields.get('v') !== '1') return { ...empty, dropped: ['everything: the link is of another version'] };
  const dropped = [];
  const vector = fields.get('vector') ?? '';
  if (vector && !NAME.test(vector)) dropped.push('the compared vector');
  return {
    view: fields.get('view') === 'compare' ? 'compare' : 'chat',
    steering: readSteering(fields.get('steer'), dropped),
    vector: NAME.test(vector) ? vector : '',
    prompt: readText(fields, 'prompt', dropped),
    system: readText(fields, 'system', dropped),
    sampling: readSampling(fields, dropped),
    dropped,
  };
}
