// Sampling settings and the system prompt.

import { el } from './dom.js';
import { SAMPLING, parseSampling } from './state.js';

const LABELS = { temperature: 'Temperature', top_p: 'Top p', max_tokens: 'Max tokens', seed: 'Seed' };

/** Fills the panel and keeps it in step with the store. */
export function mountSettings({ store, panel, summary }) {
  const inputs = {};
  const fields = Object.entries(SAMPLING).map(([name, { min, max, step }]) => {
    const input = el('input', {
      id: `set-${name}`, type: 'number', min, max, step, placeholder: name === 'seed' ? 'random' : 'server’s',
      onchange: () => store.update(({ sampling }) => {
        sampling[name] = parseSampling(name, input.value);
      }),
    });
    inputs[name] = input;
    return el('div', { class: 'field' }, el('label', { for: input.id }, LABELS[name]), input);
  });
  const system = el('textarea', {
    id: 'set-system', rows: '2', maxlength: '20000', dir: 'auto',
    oninput: () => store.update((state) => {
      state.system = system.value;
    }),
  });
  panel.replaceChildren(
    el('div', { class: 'fields' }, ...fields),
    el('div', { class: 'field' }, el('label', { for: system.id }, 'System prompt'), system));
  store.subscribe(({ sampling, system: text, model }) => {
    for (const [name, input] of Object.entries(inputs)) {
      const value = sampling[name] == null ? '' : String(sampling[name]);
      if (input.value !== value) input.value = value;
    }
    if (system.value !== text) system.value = text;
    system.disabled = model?.chat === false;
    system.placeholder = model?.defaultSystem ? 'the chat template’s own' : 'none';
    const seed = sampling.seed == null ? '' : ` · seed ${sampling.seed}`;
    summary.textContent = `T ${sampling.temperature ?? '–'} · ${sampling.max_tokens ?? '–'} tokens${seed}`;
  });
}
