// A reply on the page, in the chat and in a column of the comparison: its steering, its text as it arrives, how it
// ended, and what can be done with it.

import { ApiError, generate, newReply } from './api.js';
import { announce, copyFrom, el } from './dom.js';
import { LARGE_DOSE } from './state.js';
import { count, direction, dose, signed, visible } from './text.js';
import { canShade, shadeReply } from './tokens.js';

const ENDS = { stop: 'complete', length: 'cut at max tokens', stopped: 'stopped' };

/** Marks with name and multiplier for the entries of a request. */
export function steeringMarks(entries) {
  if (entries.length === 0) return [el('span', { class: 'mark plain' }, 'plain model')];
  return entries.map(({ name, scale }) =>
    el('span', { class: `mark ${direction(scale)}` }, `${name} `, el('b', {}, signed(scale))));
}

function statistics({ usage, tokenIds, seconds, finish }) {
  const tokens = usage?.completion_tokens ?? tokenIds.length;
  return [
    ENDS[finish] ?? finish,
    tokens > 0 && count(tokens, 'token'),
    tokens > 1 && seconds > 0 && `${(tokens / seconds).toFixed(1)} a second`,
  ].filter(Boolean).join(' · ');
}

/** A sentence for an error, with the server's own words. */
export function errorText(error) {
  if (error.status === 429) return `The server is busy: ${error.message}`;
  if (error instanceof ApiError) return error.message[0].toUpperCase() + error.message.slice(1);
  return `The page failed: ${error.message}`;
}

/** A button that can be pressed once the time that a busy server asked for is over. */
function retryButton(onRetry, seconds) {
  const button = el('button', { type: 'button', class: 'quiet', onclick: onRetry }, 'Try again');
  let left = seconds ?? 0;
  const tick = () => {
    button.disabled = left > 0;
    button.textContent = left > 0 ? `Try again in ${left} s` : 'Try again';
    if (left-- > 0) setTimeout(tick, 1000);
  };
  tick();
  return button;
}

/** The view of one reply. `onRetry` is called to generate it anew. */
export class ReplyView {
  #text = document.createTextNode('');
  #body = el('div', { class: 'text', dir: 'auto' });
  #notes = el('div', { class: 'notes' });
  #stats = el('span', { class: 'soft' });
  #buttons = el('span', { class: 'buttons' });
  #head = el('header');
  #dose = el('span', { class: 'soft' });

  constructor({ onRetry, label }) {
    this.onRetry = onRetry;
    this.reply = newReply();
    this.#body.append(this.#text);
    this.node = el('article', { class: 'reply', 'aria-label': label, tabindex: '-1' },
      this.#head, this.#body, this.#notes, el('footer', {}, this.#stats, this.#buttons));
  }

  /** Sets what stands above the text, and the direction (`toward`, `away`, `plain`) that colours the edge. */
  head(kind, ...children) {
    this.node.className = `reply ${kind}`;
    this.#head.replaceChildren(...children, this.#dose);
  }

  /** Streams the reply. Resolves to true when it ended in order or was stopped, and shows what happened if not. */
  async run(request, signal) {
    this.request = request;
    this.reply = newReply();
    this.failure = null;
    this.#show('');
    this.#notes.replaceChildren();
    if (this.#buttons.contains(document.activeElement)) this.node.focus();
    this.#buttons.replaceChildren();
    this.#stats.textContent = 'waiting';
    this.#dose.textContent = '';
    this.node.classList.add('running');
    this.node.setAttribute('aria-busy', 'true');
    try {
      await generate(request, this.reply, { signal, onChange: (reply) => this.#grow(reply) });
      this.#end();
      return true;
    } catch (error) {
      if (error.name === 'AbortError') this.reply.finish = 'stopped';
      this.#end();
      if (error.name !== 'AbortError') this.#fail(error);
      return error.name === 'AbortError';
    } finally {
      this.node.classList.remove('running');
      this.node.removeAttribute('aria-busy');
    }
  }

  /** Shows that the reply waits for a place on a busy server. */
  wait(seconds) {
    this.#notes.replaceChildren(el('p', { class: 'soft' }, `The server is busy; next try in ${seconds} s.`));
    this.#buttons.replaceChildren();
  }

  #show(text) {
    this.#text.data = text;
    this.#body.replaceChildren(this.#text);
  }

  #grow(reply) {
    this.#text.data = visible(reply.text);
    this.#stats.textContent = reply.tokenIds.length > 0 ? `${count(reply.tokenIds.length, 'token')} so far` : 'running';
    const strength = reply.steering?.relative_dose;
    this.#dose.textContent = strength > 0 ? `dose ${dose(strength)}` : '';
    this.#dose.className = strength > LARGE_DOSE ? 'warning' : 'soft';
  }

  #end() {
    const { reply } = this;
    this.#stats.textContent = statistics(reply);
    const warning = reply.steering?.warning;
    if (warning) this.#notes.append(el('p', { class: 'warning' }, visible(String(warning))));
    if (reply.finish && reply.text === '') this.#body.append(el('i', { class: 'soft' }, 'No text.'));
    if (reply.text) {
      const copy = el('button', { type: 'button', class: 'quiet', onclick: () => copyFrom(copy, reply.text) }, 'Copy');
      this.#buttons.append(copy);
    }
    if (canShade(this.request, reply)) this.#buttons.append(this.#shadeButton());
    if (reply.finish) this.#buttons.append(el('button', { type: 'button', class: 'quiet', onclick: this.onRetry }, 'Again'));
  }

  #fail(error) {
    this.failure = error;
    const text = visible(errorText(error));
    this.#stats.textContent = this.reply.text ? 'cut' : '';
    this.#notes.append(el('p', { class: 'error' }, el('b', {}, this.reply.text ? 'Cut short. ' : 'No reply. '), text));
    this.#buttons.append(retryButton(this.onRetry, error.retryAfter));
    announce(text);
  }

  #shadeButton() {
    const button = el('button', { type: 'button', class: 'quiet', 'aria-label': 'Shade tokens', 'aria-pressed': 'false', onclick: async () => {
      if (button.getAttribute('aria-pressed') === 'true') {
        button.setAttribute('aria-pressed', 'false');
        this.#show(visible(this.reply.text));
        return;
      }
      button.disabled = true;
      button.textContent = 'Scoring';
      announce('Scoring');
      try {
        this.#body.replaceChildren(await shadeReply(this.request, this.reply));
        button.setAttribute('aria-pressed', 'true');
        announce('Tokens shaded. Arrow keys move between tokens, Enter shows the alternatives.');
      } catch (error) {
        this.#notes.replaceChildren(el('p', { class: 'error' }, visible(errorText(error))));
        announce(errorText(error));
      }
      button.disabled = false;
      button.textContent = 'Shade';
    } }, 'Shade');
    return button;
  }
}
