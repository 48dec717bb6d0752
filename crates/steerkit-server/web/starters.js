// Prompts to begin with. One click puts a prompt into the box; nothing is sent.

import { el } from './dom.js';

const STARTERS = [
  'What is a quick way to cool down a hot bedroom?',
  'How should I store olive oil after opening the bottle?',
  'Write a short note to a neighbour about noise at night.',
  'Explain why the sky is blue to a ten-year-old.',
  'Give me three ideas for a rainy Sunday.',
  'I was offered a promotion in another city. What should I consider?',
];

/** The list of starter prompts; `choose(text)` is called with the one clicked. */
export function starters(lead, choose) {
  return el('div', { class: 'starters' },
    el('p', {}, lead),
    el('ul', {}, ...STARTERS.map((text) =>
      el('li', {}, el('button', { type: 'button', onclick: () => choose(text) }, text)))));
}
