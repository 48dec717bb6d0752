import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { test } from 'node:test';

import { literal, toCurl, toJson, toPython } from '../../../crates/steerkit-server/web/export.js';

const NASTY = `it's "quoted" $HOME \`id\` \\ \u202e\u001b[31m\u2028 🙂 \ud800\n'''; rm -rf x`;
const BODY = { model: 'm', messages: [{ role: 'user', content: NASTY }], temperature: 0.7, steering: { vectors: [{ name: 'a', scale: -1.5 }] } };
const REQUEST = { path: '/v1/chat/completions', body: BODY };
const ORIGIN = 'http://127.0.0.1:8080';

test('JSON holds the body and no character that hides', () => {
  assert.deepEqual(JSON.parse(toJson(REQUEST)), BODY);
  assert.doesNotMatch(toJson(REQUEST), /[\u001b\u2028\u202e]/);
});

test('a shell hands curl exactly the body', () => {
  const script = `curl() { for a; do last=$a; done; printf %s "$last"; }\n${toCurl(REQUEST, ORIGIN, false)}`;
  assert.deepEqual(JSON.parse(execFileSync('sh', ['-c', script], { encoding: 'utf8' })), BODY);
});

test('the key is named, never written', () => {
  assert.match(toCurl(REQUEST, ORIGIN, true), /Bearer \$STEERKIT_API_KEY/);
  assert.doesNotMatch(toCurl(REQUEST, ORIGIN, false), /Authorization/);
  assert.match(toPython(REQUEST, ORIGIN, true), /os\.environ\["STEERKIT_API_KEY"\]/);
});

test('literals in both languages', () => {
  const value = { a: null, b: true, c: [1.5, 'x'], d: [], e: [{ f: false }] };
  assert.equal(literal(value, 'python'), '{\n  "a": None,\n  "b": True,\n  "c": [1.5, "x"],\n  "d": [],\n  "e": [\n    {"f": False}\n  ]\n}');
  assert.deepEqual(JSON.parse(literal(value, 'json')), value);
});

test('Python sends exactly the body', (t) => {
  const python = spawnSync('python3', ['-V']);
  if (python.error) return t.skip('no python3');
  const fake = `
import json, sys, types
def create(**kwargs):
    kwargs.update(kwargs.pop("extra_body", {}))
    print(json.dumps(kwargs))
    sys.exit()
client = types.SimpleNamespace(chat=types.SimpleNamespace(completions=types.SimpleNamespace(create=create)))
sys.modules["openai"] = types.SimpleNamespace(OpenAI=lambda **kwargs: client)
`;
  const out = execFileSync('python3', ['-'], { input: fake + toPython(REQUEST, ORIGIN, false), encoding: 'utf8' });
  assert.deepEqual(JSON.parse(out), BODY);
});
