// One prompt at five multipliers of one vector, side by side, from one seed.

import { announce, el } from './dom.js';
import { ReplyView } from './reply.js';
import { createRuns } from './runs.js';
import { starters } from './starters.js';
import { buildRequest } from './state.js';
import { direction, signed, visible } from './text.js';

const SCALES = [-2, -1, 0, 1, 2];
const WORDS = { toward: 'toward', away: 'away from', plain: 'plain model' };
/** How often a column waits for a busy server before it gives up. */
const TRIES = 5;

const pause = (seconds, signal) => new Promise((resolve) => {
  const timer = setTimeout(resolve, seconds * 1000);
  signal.addEventListener('abort', () => {
    clearTimeout(timer);
    resolve();
  });
});

/** Runs a column; while the server is busy it waits as long as the server says and tries again. */
async function runColumn(view, request, signal) {
  for (let tries = 1; ; tries++) {
    const good = await view.run(request, signal);
    if (good || view.failure?.status !== 429 || tries === TRIES) return good;
    const seconds = view.failure.retryAfter ?? 1;
    view.wait(seconds);
    await pause(seconds, signal);
  }
}

/** Mounts the comparison into its setup line and its grid. */
export function mountCompare({ store, setup, grid, choosePrompt, onChange }) {
  const runs = createRuns(onChange);
  const choice = el('select', { id: 'compare-vector' });
  const note = el('p', { class: 'soft' });
  setup.replaceChildren(el('label', { for: 'compare-vector' }, 'Vector'), choice, note);
  grid.replaceChildren(starters('One question at −2 to +2 of one vector, all from one seed.', choosePrompt));

  let shown = null;
  store.subscribe(({ vectors, sampling }) => {
    note.textContent = `Only this vector acts. ${sampling.seed == null ? 'A seed is drawn for each run' : `Seed ${sampling.seed}`}.`;
    if (vectors === shown) return;
    shown = vectors;
    const kept = choice.value;
    choice.replaceChildren(...vectors.map(({ name }) => el('option', { value: name }, name)));
    if (vectors.some(({ name }) => name === kept)) choice.value = kept;
    choice.disabled = vectors.length === 0;
  });

  const requestFor = (text, name, scale, seed) =>
    buildRequest(store.state, [{ role: 'user', content: text }], scale === 0 ? [] : [{ name, scale }], { seed });

  function column(text, vector, scale, seed) {
    const request = requestFor(text, vector.name, scale, seed);
    const start = () => runs.track((signal) => runColumn(view, request, signal));
    const kind = direction(scale);
    const view = new ReplyView({ label: `${vector.name} at ${signed(scale)}`, onRetry: start });
    view.head(kind, el('h3', {}, el('b', {}, signed(scale)), scale ? `${WORDS[kind]} ${vector.name}` : WORDS.plain));
    return { view, start };
  }

  return {
    busy: runs.busy,
    stop: runs.stop,
    async send(text) {
      const vector = store.state.vectors.find(({ name }) => name === choice.value);
      if (!vector) return;
      const seed = store.state.sampling.seed ?? Math.floor(Math.random() * 2 ** 31);
      const columns = SCALES.map((scale) => column(text, vector, scale, seed));
      grid.replaceChildren(el('div', { class: 'panel' },
        el('h2', { dir: 'auto' }, visible(text)),
        el('div', { class: 'columns' }, ...columns.map(({ view }) => view.node)),
        el('p', { class: 'soft foot' }, `${vector.name}, seed ${seed}, temperature ${store.state.sampling.temperature ?? 'of the server'}`)));
      announce('Comparison started');
      const good = await Promise.all(columns.map(({ start }) => start()));
      announce(good.every(Boolean) ? 'Comparison complete' : 'Comparison ended with errors');
    },
    /** The request of the +1 column. */
    request: (text) => requestFor(text || 'Hello!', choice.value, choice.value ? 1 : 0, store.state.sampling.seed),
    vector: () => choice.value,
    /** Chooses a vector if the server has it. */
    choose(name) {
      if (store.state.vectors.some((vector) => vector.name === name)) choice.value = name;
    },
  };
}
