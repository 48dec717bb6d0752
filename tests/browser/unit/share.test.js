import assert from 'node:assert/strict';
import { test } from 'node:test';

import { LIMITS, decodeShare, encodeShare } from '../../../crates/steerkit-server/web/share.js';

const FULL = {
  view: 'compare', steering: [{ name: 'a.b-c_1', scale: -1.5 }, { name: 'x', scale: 0.1 }], vector: 'x',
  prompt: 'How?\n"quotes" & =+% ünïcode 🙂', system: 'be kind', sampling: { temperature: 0.3, top_p: 0.9, max_tokens: 20, seed: 7 },
};

test('a link gives back what was put in', () => {
  const { dropped, ...back } = decodeShare(`#${encodeShare(FULL)}`);
  assert.deepEqual(back, FULL);
  assert.deepEqual(dropped, []);
});

test('other fragments are not links', () => {
  for (const text of ['', '#', '#prompt', '#v=x', '#prompt=hello', '#vv=1']) assert.equal(decodeShare(text), null, text);
});

test('hostile vectors are dropped or bounded', () => {
  const read = (steer) => decodeShare(`#v=1&steer=${encodeURIComponent(steer)}`);
  assert.deepEqual(read('a=99').steering, [{ name: 'a', scale: 3 }]);
  for (const bad of ['../../etc/passwd=1', '<img>=1', 'A=1', 'a=NaN', 'a=Infinity', 'a=1e999', 'a=', '=1', 'a', `${'n'.repeat(65)}=1`, '__proto__ =1', 'a=0x10']) {
    const { steering, dropped } = read(bad);
    assert.deepEqual(steering, [], bad);
    assert.deepEqual(dropped, ['a vector'], bad);
  }
  const many = read(Array.from({ length: 500 }, (_, i) => `v${i}=1`).join(','));
  assert.equal(many.steering.length, LIMITS.vectors);
  assert.equal(many.dropped.length, 1);
  assert.deepEqual(read('a=1,a=2').steering, [{ name: 'a', scale: 1 }]);
  assert.deepEqual(read('__proto__=1').steering, [{ name: '__proto__', scale: 1 }]);
  assert.equal({}.scale, undefined);
});

test('hostile text and numbers are dropped or cut', () => {
  const long = decodeShare(`#v=1&prompt=${'a'.repeat(LIMITS.prompt + 5)}`);
  assert.equal(long.prompt.length, LIMITS.prompt);
  assert.deepEqual(long.dropped, ['part of the prompt']);
  assert.equal(decodeShare('#v=1&prompt=a%E2%80%AEb%00c').prompt, 'abc');
  assert.deepEqual(decodeShare('#v=1&temperature=NaN&seed=-1&max_tokens=1e9&top_p=5').sampling, { top_p: 1 });
  assert.equal(decodeShare(`#v=1&prompt=${'a'.repeat(LIMITS.fragment)}`).prompt, '');
  assert.equal(decodeShare('#v=2&prompt=a').prompt, '');
  assert.equal(decodeShare('#v=1&view=javascript:alert(1)').view, 'chat');
  assert.equal(decodeShare('#v=1&vector=../x').vector, '');
  assert.equal(decodeShare('#v=1&prompt=%ff%zz').prompt, '\ufffd%zz');
});
