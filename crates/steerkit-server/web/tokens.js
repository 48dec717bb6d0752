// Tokens shaded by the change of their log-probability against the unsteered model, and the ten likeliest tokens at a
// place before and after. The text is scored twice as a prompt: `echo` with `max_tokens` 0 runs the model over it and
// generates nothing.

import { ApiError, json } from './api.js';
import { el } from './dom.js';
import { signed, visible } from './text.js';

/** Change of log-probability, in nats, at which the shade is strongest. */
const FULL = 3;
/** Changes below this are not marked. */
const NONE = 0.05;

// Scopes that do not depend on where the prompt ends: with another, a reply scored as a prompt is steered differently.
const WHOLE = new Set(['all', 'all-but-first']);

/** Whether a reply can be scored: it was steered, everywhere alike, and the server told the token ids. */
export function canShade(request, { promptIds, tokenIds, steering }) {
  const scopes = (steering?.vectors ?? []).map(({ scope }) => scope ?? 'all');
  return request.body.steering.vectors.length > 0 && promptIds?.length > 0 && tokenIds.length > 0 && scopes.every((s) => WHOLE.has(s));
}

const ranked = (top) => Object.entries(top ?? {}).sort((a, b) => b[1] - a[1]).slice(0, 10);

/**
 * Tokens as text. One that is a part of a character is called `bytes:\xe2`; the last of its parts gets the character, and a
 * character that the text ends within is the replacement character, as in the reply.
 */
export function tokenTexts(names) {
  const decoder = new TextDecoder();
  const encoder = new TextEncoder();
  return names.map((name, i) => {
    const parts = /^bytes:((?:\\x[0-9a-f]{2})+)$/.exec(name)?.[1].slice(2).split('\\x');
    const bytes = parts ? Uint8Array.from(parts, (hex) => parseInt(hex, 16)) : encoder.encode(name);
    return decoder.decode(bytes, { stream: i + 1 < names.length });
  });
}

/** Joins the two scored texts to one list of tokens from `start` on: name, text, log-probabilities and the likeliest tokens. */
export function joinScores(plain, steered, start, length) {
  const arrays = [plain, steered].flatMap((scores) => [scores?.tokens, scores?.token_logprobs, scores?.top_logprobs]);
  if (!arrays.every((array) => Array.isArray(array) && array.length >= start + length)) {
    throw new ApiError('the server did not score every token');
  }
  const names = steered.tokens.slice(start, start + length);
  const texts = tokenTexts(names);
  return names.map((name, i) => {
    const at = start + i;
    const [before, after] = [plain.token_logprobs[at], steered.token_logprobs[at]];
    return {
      name, text: texts[i], before, after, change: after - before,
      topBefore: ranked(plain.top_logprobs[at]), topAfter: ranked(steered.top_logprobs[at]),
    };
  });
}

/** Scores a reply with and without its steering. */
async function score({ body }, { promptIds, tokenIds }) {
  const ask = async (vectors) => {
    const prompt = [...promptIds, ...tokenIds];
    const reply = await json('/v1/completions', {
      method: 'POST',
      body: { model: body.model, prompt, echo: true, logprobs: 10, max_tokens: 0, temperature: 0, steering: { vectors } },
    });
    return reply?.choices?.[0]?.logprobs;
  };
  const [plain, steered] = [await ask([]), await ask(body.steering.vectors)];
  return joinScores(plain, steered, promptIds.length, tokenIds.length);
}

/** A token's text with its blanks shown, for places where it stands alone. */
const shown = (text) => visible(text).replaceAll(' ', '␣').replaceAll('\n', '↵').replaceAll('\t', '⇥') || '(empty)';

const percent = (logprob) => {
  const p = Math.exp(logprob) * 100;
  return p >= 0.1 ? `${p.toFixed(1)} %` : '< 0.1 %';
};

function topTable(caption, top, chosen) {
  const rows = top.map(([text, logprob]) => {
    const bar = el('td', { class: 'bar' }, percent(logprob));
    bar.style.setProperty('--p', Math.exp(logprob));
    return el('tr', text === chosen ? { class: 'chosen' } : {}, el('th', { scope: 'row' }, shown(text)), bar);
  });
  return el('table', {}, el('caption', {}, caption), el('tbody', {}, ...rows));
}

/** The popover with a token's change and the likeliest tokens before and after; one at a time. */
function openPopover(anchor, token) {
  document.getElementById('token-popover')?.hidePopover();
  const title = el('h3', { id: 'token-title', tabindex: '-1' }, shown(token.name));
  const close = el('button', { type: 'button', class: 'quiet', 'aria-label': 'Close', onclick: () => node.hidePopover() }, 'Close');
  const node = el('div', { id: 'token-popover', popover: 'auto', role: 'dialog', 'aria-labelledby': 'token-title' },
    el('div', { class: 'line' }, title, close),
    el('p', {}, el('b', { class: token.change > 0 ? 'up' : 'down' }, `${signed(token.change, 2)} nats`),
      ` against the unsteered model: ${percent(token.before)} before, ${percent(token.after)} steered.`),
    el('div', { class: 'tops' },
      topTable('Unsteered', token.topBefore, token.name), topTable('Steered', token.topAfter, token.name)));
  node.addEventListener('toggle', ({ newState }) => {
    if (newState !== 'closed') return;
    const hadFocus = node.contains(document.activeElement) || document.activeElement === document.body;
    node.remove();
    anchor.classList.remove('open');
    if (hadFocus) anchor.focus();
  });
  document.body.append(node);
  node.showPopover();
  anchor.classList.add('open');
  place(node, anchor);
  title.focus();
}

/** Puts the popover below the token, or above it where there is no room, inside the window. */
function place(node, anchor) {
  const at = anchor.getClientRects()[0];
  const [width, height] = [node.offsetWidth, node.offsetHeight];
  const left = Math.max(8, Math.min(at.left, document.documentElement.clientWidth - width - 8));
  const below = at.bottom + 6;
  const top = below + height < innerHeight - 8 ? below : Math.max(8, at.top - height - 6);
  node.style.left = `${left}px`;
  node.style.top = `${top}px`;
}

function tokenElement(token, first) {
  const strength = Math.min(1, Math.abs(token.change) / FULL);
  const kind = Math.abs(token.change) < NONE ? 'same' : token.change > 0 ? 'up' : 'down';
  // What is seen is part of what is said, for bytes that are no text by themselves too.
  const [text, name] = [visible(token.text), shown(token.name)];
  const label = name.includes(text.trim()) ? name : `${text} ${name}`;
  const node = el('span', {
    class: `token ${kind}`, role: 'button', tabindex: first ? '0' : '-1', 'aria-haspopup': 'dialog',
    'aria-label': `${label}, ${signed(token.change, 2)} nats`,
    onclick: () => openPopover(node, token),
  }, text);
  node.style.setProperty('--shade', `${Math.round(strength * 100)}%`);
  return node;
}

/** Arrow keys, Home and End move between tokens; Enter and Space open one. */
function onKey(event) {
  const tokens = [...event.currentTarget.children];
  const at = tokens.indexOf(event.target);
  const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tokens.length - 1 }[event.key];
  if (event.key === 'Enter' || event.key === ' ') event.target.click();
  else if (to === undefined) return;
  event.preventDefault();
  if (!tokens[to]) return;
  event.target.tabIndex = -1;
  tokens[to].tabIndex = 0;
  tokens[to].focus();
}

const legend = () => el('p', { class: 'legend' },
  el('span', { class: 'token down' }, 'less likely'), el('i', { 'aria-hidden': 'true' }), el('span', { class: 'token up' }, 'more likely'),
  ` than without steering; full shade at ${FULL} nats. Click a token for its alternatives.`);

/** Scores the reply; returns it as shaded tokens. Throws `ApiError`. */
export async function shadeReply(request, reply) {
  const tokens = await score(request, reply);
  // The token that ends a reply has an id but no text.
  const text = tokens.map((token) => token.text).join('');
  if (text.length > reply.text.length && text.startsWith(reply.text)) tokens.pop();
  const nodes = tokens.map((token, i) => tokenElement(token, i === 0));
  return el('div', { class: 'shaded' },
    el('div', { role: 'group', 'aria-label': 'Reply, token by token', onkeydown: onKey }, ...nodes), legend());
}
