import assert from 'node:assert/strict';
import { test } from 'node:test';

import { SseParser, retrySeconds } from '../../../crates/steerkit-server/web/api.js';

const STREAM = ': keep-alive\n\ndata: {"a":"é"}\n\nevent: x\r\ndata:two\r\ndata: lines\r\n\r\ndata: [DONE]\r\r';
const EVENTS = ['{"a":"é"}', 'two\nlines', '[DONE]'];

function parse(pieces) {
  const parser = new SseParser();
  // One more piece, because a CR at the end might be half of a CRLF.
  return [...pieces, '\n'].flatMap((piece) => parser.push(piece));
}

test('events are the same wherever the stream is cut', () => {
  assert.deepEqual(parse([STREAM]), EVENTS);
  assert.deepEqual(parse([...STREAM]), EVENTS);
  for (let at = 1; at < STREAM.length; at++) {
    assert.deepEqual(parse([STREAM.slice(0, at), STREAM.slice(at)]), EVENTS, `cut at ${at}`);
  }
});

test('an event that is not complete is held back', () => {
  const parser = new SseParser();
  assert.deepEqual(parser.push('data: {"a":'), []);
  assert.deepEqual(parser.push('1}\n'), []);
  assert.deepEqual(parser.push('\n'), ['{"a":1}']);
});

test('Retry-After is read as seconds and as a date, bounded', () => {
  assert.equal(retrySeconds(null), null);
  assert.equal(retrySeconds('3'), 3);
  assert.equal(retrySeconds('0'), 1);
  assert.equal(retrySeconds('999999999'), 3600);
  assert.equal(retrySeconds('soon'), null);
  assert.equal(retrySeconds('Thu, 01 Jan 1970 00:00:10 GMT', 4000), 6);
});
