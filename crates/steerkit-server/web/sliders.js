// One slider per vector, the typed value beside it, and the dose that they add up to.

import { el, announce } from './dom.js';
import { LARGE_DOSE, SCALE, STEP, activeVectors, combinedDose, parseScale, relativeDose } from './state.js';
import { direction, dose, signed } from './text.js';

const WORDS = { toward: 'toward', away: 'away', plain: 'off' };
/** From this many vectors on there is a box to filter them. */
const FILTER_FROM = 8;

/** What a slider's position means, for the line below it and for screen readers. */
function meaning(vector, { scale, muted }) {
  if (muted) return { text: 'muted', dose: null };
  return { text: WORDS[direction(scale)], dose: scale ? relativeDose(vector, scale) : null };
}

/** What the vector is, where it acts and how it came about. */
function origin(vector) {
  const parts = [
    vector.behavior !== vector.name && vector.behavior, vector.method, vector.layer != null && `layer ${vector.layer}`,
  ];
  if (vector.operator && vector.operator !== 'add') parts.push(vector.operator);
  if (vector.scope && vector.scope !== 'all') parts.push(`on ${vector.scope}`);
  if (vector.unit_dose != null) parts.push(`unit dose ${signed(vector.unit_dose)}`);
  return parts.filter(Boolean).join(' · ');
}

/** The row of one vector; `row.show(slider)` puts it at a position. */
function createRow(vector, change) {
  const id = `vector-${vector.name}`;
  const set = (values) => change(vector.name, values);
  const range = el('input', {
    type: 'range', min: -SCALE, max: SCALE, step: STEP, 'aria-labelledby': id,
    oninput: () => set({ scale: Number(range.value), muted: false }),
  });
  const typed = el('input', {
    type: 'text', class: 'typed', 'aria-label': `${vector.name}, multiplier`, autocomplete: 'off', spellcheck: 'false',
    onchange: () => {
      const scale = parseScale(typed.value);
      if (scale == null) announce(`Not a number between −${SCALE} and ${SCALE}`);
      set(scale == null ? {} : { scale, muted: false });
      typed.value = signed(Number(range.value));
    },
  });
  const mute = el('button', {
    type: 'button', class: 'quiet', 'aria-label': `Mute ${vector.name}`, 'aria-pressed': 'false',
    onclick: () => set({ muted: mute.getAttribute('aria-pressed') === 'false' }),
  }, 'Mute');
  const reset = el('button', {
    type: 'button', class: 'quiet', 'aria-label': `Reset ${vector.name}`, onclick: () => set({ scale: 0, muted: false }),
  }, 'Reset');
  const state = el('b');
  const doseText = el('span');
  const track = el('div', { class: 'track' }, el('span', { class: 'fill' }), range);
  const node = el('div', { class: 'vector', role: 'group', 'aria-labelledby': id },
    el('div', { class: 'line' }, el('h3', { id }, vector.name), typed),
    el('p', { class: 'origin' }, origin(vector)),
    track,
    el('div', { class: 'scale', 'aria-hidden': 'true' }, el('span', {}, '−3'), el('span', {}, '0'), el('span', {}, '+3')),
    el('div', { class: 'line' }, el('p', { class: 'meaning' }, state, doseText), el('div', {}, mute, reset)));
  const show = (slider) => {
    const { scale, muted } = slider;
    const said = meaning(vector, slider);
    range.value = scale;
    if (document.activeElement !== typed) typed.value = signed(scale);
    node.className = `vector ${direction(scale)}${muted ? ' muted' : ''}`;
    track.style.setProperty('--from', (Math.min(scale, 0) + SCALE) / (2 * SCALE));
    track.style.setProperty('--to', (Math.max(scale, 0) + SCALE) / (2 * SCALE));
    state.textContent = said.text;
    doseText.textContent = said.dose == null ? '' : ` · dose ${dose(said.dose)}`;
    doseText.className = said.dose > LARGE_DOSE ? 'large' : '';
    mute.setAttribute('aria-pressed', String(muted));
    reset.disabled = scale === 0 && !muted;
    range.setAttribute('aria-valuetext', `${signed(scale)}, ${state.textContent}${doseText.textContent}`);
  };
  return { node, show };
}

/** Fills the panels with the store's vectors and keeps them in step with the store. */
export function mountSliders({ store, list, combined, summary, reload }) {
  let rows = new Map();
  let shown = null;
  let wasLarge = false;
  const change = (name, values) => store.update((state) => {
    state.sliders.set(name, { ...state.sliders.get(name), ...values });
  });

  function rebuild({ vectors, model }) {
    rows = new Map(vectors.map((vector) => [vector.name, createRow(vector, change)]));
    const filter = el('input', {
      type: 'search', class: 'filter', 'aria-label': 'Filter vectors', placeholder: `Filter ${vectors.length} vectors`,
      oninput: () => {
        const wanted = filter.value.trim().toLowerCase();
        for (const [name, { node }] of rows) node.hidden = !name.includes(wanted);
      },
    });
    list.replaceChildren(...(vectors.length >= FILTER_FROM ? [filter] : []), ...[...rows.values()].map((row) => row.node));
    if (model && vectors.length === 0) {
      list.replaceChildren(el('div', { class: 'empty' },
        el('p', {}, 'The server has no vectors yet. Train one and put it into the folder that it watches:'),
        el('pre', { tabindex: '0' }, 'steerkit train --data pairs.csv\nsteerkit serve --model M --vectors DIR'),
        el('button', { type: 'button', onclick: reload }, 'Look again')));
    }
  }

  const total = el('b');
  const track = el('div', { class: 'dose-track', 'aria-hidden': 'true' }, el('span'), el('i'));
  const remark = el('p');
  const resetAll = el('button', { type: 'button', class: 'quiet', onclick: () => store.update(({ sliders }) => {
    for (const name of sliders.keys()) sliders.set(name, { scale: 0, muted: false });
  }) }, 'Reset all');
  const again = el('button', { type: 'button', class: 'quiet', 'aria-label': 'Reload vectors', onclick: reload }, 'Reload');
  track.style.setProperty('--limit', LARGE_DOSE);
  combined.append(el('div', { class: 'line' }, el('p', {}, 'Total dose ', total), el('div', {}, resetAll, again)), track, remark);

  function showCombined(state) {
    const entries = activeVectors(state);
    const sum = combinedDose(state.vectors, entries);
    const large = sum > LARGE_DOSE;
    combined.hidden = state.vectors.length === 0;
    combined.classList.toggle('large', large);
    total.textContent = dose(sum);
    track.style.setProperty('--dose', Math.min(1, sum));
    resetAll.disabled = entries.length === 0;
    remark.className = large ? 'warning' : 'soft';
    remark.textContent = large
      ? `Past ${LARGE_DOSE} of the residual stream texts tend to break.`
      : 'Share of the residual stream’s norm.';
    if (large && !wasLarge) announce(`Combined dose past ${LARGE_DOSE}: texts tend to break`);
    wasLarge = large;
    const names = entries.slice(0, 2).map(({ name, scale }) => `${name} ${signed(scale)}`);
    if (entries.length > 2) names.push(`${entries.length - 2} more`);
    summary.textContent = names.join(', ') || 'plain model';
  }

  store.subscribe((state) => {
    if (shown !== state.vectors) rebuild(state);
    shown = state.vectors;
    for (const [name, row] of rows) row.show(state.sliders.get(name));
    showCombined(state);
  });
}
