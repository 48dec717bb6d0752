import assert from 'node:assert/strict';
import { test } from 'node:test';

import { activeVectors, buildRequest, clampScale, combinedDose, createStore, parseSampling, parseScale, setSliders } from '../../../crates/steerkit-server/web/state.js';
import { signed, stripped, visible } from '../../../crates/steerkit-server/web/text.js';

function example() {
  const { state } = createStore();
  state.model = { id: 'm', chat: true };
  state.vectors = [{ name: 'a', relative_dose: 0.3 }, { name: 'b', relative_dose: 0.5 }, { name: 'c', relative_dose: 9, operator: 'ablate' }];
  state.sliders = new Map([['a', { scale: 1.5, muted: false }], ['b', { scale: -1, muted: true }], ['c', { scale: 0, muted: false }]]);
  return state;
}

test('multipliers lie on the grid of the slider', () => {
  const cases = { '1.5': 1.5, '+0.26': 0.3, '−2': -2, '-.5': -0.5, '0,7': 0.7, 99: 3, '-99': -3, '-0.01': 0 };
  for (const [text, scale] of Object.entries(cases)) assert.equal(parseScale(text), scale, text);
  for (const text of ['', 'x', '1e3', 'NaN', 'Infinity', '1..2', '--1', '.']) assert.equal(parseScale(text), null, text);
  assert.ok(Object.is(clampScale(-0.04), 0));
});

test('sampling values are kept in their ranges', () => {
  assert.equal(parseSampling('temperature', '3'), 2);
  assert.equal(parseSampling('top_p', '-1'), 0);
  assert.equal(parseSampling('max_tokens', '12.6'), 13);
  assert.equal(parseSampling('seed', ''), null);
  assert.equal(parseSampling('seed', 'x'), null);
});

test('a muted vector and one at 0 are not sent and do not count', () => {
  const state = example();
  assert.deepEqual(activeVectors(state), [{ name: 'a', scale: 1.5 }]);
  assert.ok(Math.abs(combinedDose(state.vectors, activeVectors(state)) - 0.45) < 1e-12);
  state.sliders.get('b').muted = false;
  assert.ok(Math.abs(combinedDose(state.vectors, activeVectors(state)) - 0.95) < 1e-12);
});

test('only added vectors have a dose', () => {
  const { vectors } = example();
  assert.equal(combinedDose(vectors, [{ name: 'c', scale: 1 }, { name: 'unknown', scale: 1 }]), 0);
});

test('setting all sliders names the vectors that are missing', () => {
  const state = example();
  assert.deepEqual(setSliders(state, [{ name: 'b', scale: 7 }, { name: 'gone', scale: 1 }]), ['gone']);
  assert.deepEqual(activeVectors(state), [{ name: 'b', scale: 3 }]);
});

test('a request carries what is set and nothing else', () => {
  const state = example();
  const messages = [{ role: 'user', content: 'hi' }];
  assert.deepEqual(buildRequest(state, messages, activeVectors(state)), {
    path: '/v1/chat/completions',
    body: { model: 'm', messages, temperature: 0.7, top_p: 1, max_tokens: 200, steering: { vectors: [{ name: 'a', scale: 1.5 }] } },
  });
  state.system = 'be kind';
  assert.deepEqual(buildRequest(state, messages, []).body.messages[0], { role: 'system', content: 'be kind' });
  assert.deepEqual(buildRequest(state, messages, []).body.steering, { vectors: [] });
  state.model.chat = false;
  const plain = buildRequest(state, messages, [], { seed: 4 });
  assert.equal(plain.path, '/v1/completions');
  assert.equal(plain.body.prompt, 'hi');
  assert.equal(plain.body.seed, 4);
});

test('controls that hide or reorder text are written out or removed', () => {
  assert.equal(visible('a\u202eb\u2066c\u0007\n\td'), 'a[U+202E]b[U+2066]c[U+0007]\n\td');
  assert.equal(stripped('a\u202eb\u0000\nc'), 'ab\nc');
  assert.equal(visible('שלום <b>'), 'שלום <b>');
});

test('signs are shown', () => {
  assert.deepEqual([1.5, -0.3, 2, 0, -0.001].map((x) => signed(x)), ['+1.5', '−0.3', '+2', '0', '0']);
});
