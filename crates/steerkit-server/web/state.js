// What the page knows and what it would send. Everything that reads or changes it goes through one store.

/** Multipliers go from -SCALE to SCALE in steps of STEP; past LARGE_DOSE texts tend to break. */
export const SCALE = 3;
export const STEP = 0.1;
export const LARGE_DOSE = 0.8;

/** The sampling settings: range, step and default of each. An empty value is left out of the request. */
export const SAMPLING = {
  temperature: { min: 0, max: 2, step: 0.1, initial: 0.7 },
  top_p: { min: 0, max: 1, step: 0.05, initial: 1 },
  max_tokens: { min: 1, max: 32768, step: 1, initial: 200 },
  seed: { min: 0, max: 2 ** 32 - 1, step: 1, initial: null },
};

/** A store: `state` is read, `update(change)` changes it and tells everybody who subscribed. */
export function createStore() {
  const sampling = Object.fromEntries(Object.entries(SAMPLING).map(([name, { initial }]) => [name, initial]));
  const state = { model: null, vectors: [], sliders: new Map(), sampling, system: '', hasKey: false };
  const listeners = new Set();
  return {
    state,
    update(change) {
      change(state);
      for (const listener of listeners) listener(state);
    },
    subscribe: (listener) => listeners.add(listener),
  };
}

/** A multiplier on the slider's grid, or null when the text is no number. Accepts `+1.5`, `−1.5` and a decimal comma. */
export function parseScale(text) {
  const plain = String(text).trim().replace('−', '-').replace(',', '.');
  if (!/^[+-]?(\d+\.?\d*|\.\d+)$/.test(plain)) return null;
  return clampScale(Number(plain));
}

/** The nearest multiplier on the slider's grid. */
export function clampScale(value) {
  const bounded = Math.min(SCALE, Math.max(-SCALE, value));
  return Math.round(bounded / STEP) / Math.round(1 / STEP) || 0;
}

/** A sampling value inside its range and on whole numbers where they are asked for, or null when there is none. */
export function parseSampling(name, text) {
  const { min, max, step } = SAMPLING[name];
  const value = typeof text === 'string' && text.trim() === '' ? NaN : Number(text);
  if (!Number.isFinite(value)) return null;
  const bounded = Math.min(max, Math.max(min, value));
  return step === 1 ? Math.round(bounded) : bounded;
}

/** The vectors that act, as a request names them. */
export function activeVectors({ vectors, sliders }) {
  return vectors
    .map(({ name }) => ({ name, ...sliders.get(name) }))
    .filter(({ scale, muted }) => scale && !muted)
    .map(({ name, scale }) => ({ name, scale }));
}

/** Relative dose of a vector at a multiplier; null where the server does not know it or the vector is not added. */
export function relativeDose(vector, scale) {
  const known = (vector.operator ?? 'add') === 'add' && Number.isFinite(vector.relative_dose);
  return known ? Math.abs(scale) * vector.relative_dose : null;
}

/** The sum of the relative doses of these entries of a request: at most this much is added at one place. */
export function combinedDose(vectors, entries) {
  const byName = new Map(vectors.map((vector) => [vector.name, vector]));
  return entries.reduce((sum, { name, scale }) => {
    const vector = byName.get(name);
    return sum + ((vector && relativeDose(vector, scale)) ?? 0);
  }, 0);
}

/** Sets the sliders to these entries of a request, all others to 0. Returns the names that the server does not have. */
export function setSliders(state, entries) {
  const wanted = new Map(entries.map(({ name, scale }) => [name, clampScale(scale)]));
  for (const { name } of state.vectors) {
    state.sliders.set(name, { scale: wanted.get(name) ?? 0, muted: false });
    wanted.delete(name);
  }
  return [...wanted.keys()];
}

/**
 * The request for these messages, as any client would send it: the path and the body. A model without a chat template
 * gets the last message as text to go on from.
 */
export function buildRequest(state, messages, entries, overrides = {}) {
  const { id, chat } = state.model;
  // Said even when it is nothing: vectors that the server adds by itself stay out.
  const steering = { vectors: entries };
  const sampling = Object.fromEntries(
    Object.entries({ ...state.sampling, ...overrides }).filter(([, value]) => value != null),
  );
  if (!chat) {
    return { path: '/v1/completions', body: { model: id, prompt: messages.at(-1).content, ...sampling, steering } };
  }
  const system = state.system.trim() ? [{ role: 'system', content: state.system }] : [];
  return { path: '/v1/chat/completions', body: { model: id, messages: [...system, ...messages], ...sampling, steering } };
}
