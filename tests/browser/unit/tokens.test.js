import assert from 'node:assert/strict';
import { test } from 'node:test';

import { canShade, joinScores, tokenTexts } from '../../../crates/steerkit-server/web/tokens.js';

const scores = (lp) => ({ tokens: ['<s>', 'a', 'b'], token_logprobs: [null, -1, lp], top_logprobs: [null, { a: -1 }, { x: -9, b: lp }] });

test('scores are joined from the first token of the reply on', () => {
  assert.deepEqual(joinScores(scores(-2), scores(-0.5), 2, 1), [{
    name: 'b', text: 'b', before: -2, after: -0.5, change: 1.5, topBefore: [['b', -2], ['x', -9]], topAfter: [['b', -0.5], ['x', -9]],
  }]);
});

test('parts of a character are put together', () => {
  assert.deepEqual(tokenTexts(['a', 'bytes:\\xf0\\x9f', 'bytes:\\x99\\x82', ' bytes:', 'é']), ['a', '', '🙂', ' bytes:', 'é']);
  assert.deepEqual(tokenTexts(['a', 'bytes:\\xe2']), ['a', '\ufffd'], 'a reply that ends within a character');
});

test('scores that do not cover the reply are refused', () => {
  assert.throws(() => joinScores(scores(-2), scores(-2), 2, 2), /did not score every token/);
  assert.throws(() => joinScores(undefined, scores(-2), 1, 1), /did not score every token/);
});

test('only a reply that was steered alike everywhere can be shaded', () => {
  const request = { body: { steering: { vectors: [{ name: 'a', scale: 1 }] } } };
  const reply = (scope) => ({ promptIds: [1], tokenIds: [2], steering: { vectors: [{ scope }] } });
  assert.equal(canShade(request, reply('all')), true);
  assert.equal(canShade(request, reply('generated')), false);
  assert.equal(canShade({ body: { steering: { vectors: [] } } }, reply('all')), false);
  assert.equal(canShade(request, { ...reply('all'), promptIds: null }), false);
});
