// The chat: turns of a prompt and a steered reply.

import { announce, el } from './dom.js';
import { ReplyView, steeringMarks } from './reply.js';
import { createRuns } from './runs.js';
import { starters } from './starters.js';
import { activeVectors, buildRequest } from './state.js';
import { direction, visible } from './text.js';

const EXAMPLE = 'Hello!';

/** The edge of a reply: the direction of its vectors where they agree. */
function kindOf(entries) {
  const kinds = new Set(entries.map(({ scale }) => direction(scale)));
  return kinds.size === 1 ? [...kinds][0] : 'plain';
}

/** Keeps the end of the transcript in view while it grows, unless the reader has scrolled up. */
function followEnd(transcript, end) {
  let near = true;
  document.addEventListener('scroll', () => {
    near = end.getBoundingClientRect().top < innerHeight + 80;
  }, { capture: true, passive: true });
  const follow = () => near && end.scrollIntoView({ block: 'end' });
  new MutationObserver(follow).observe(transcript, { childList: true, subtree: true, characterData: true });
}

/** Mounts the chat. `choosePrompt(text)` fills the prompt box, `onChange` is told when a reply starts or ends. */
export function mountChat({ store, transcript, choosePrompt, onChange }) {
  const runs = createRuns(onChange);
  const end = el('div', { class: 'tail' });
  let turns = [];
  transcript.after(end);
  followEnd(transcript, end);

  const history = (until) => turns.slice(0, until).filter(({ view }) => view.reply.text).flatMap(({ text, view }) => [
    { role: 'user', content: text },
    { role: 'assistant', content: view.reply.text },
  ]);
  const requestFor = (text, until) =>
    buildRequest(store.state, [...history(until), { role: 'user', content: text }], activeVectors(store.state));

  async function run(turn) {
    if (runs.busy()) return;
    const entries = activeVectors(store.state);
    turn.view.head(kindOf(entries), ...steeringMarks(entries));
    turn.request = requestFor(turn.text, turns.indexOf(turn));
    announce('Reply started');
    const good = await runs.track((signal) => turn.view.run(turn.request, signal));
    if (good) announce(turn.view.reply.finish === 'stopped' ? 'Stopped' : 'Reply complete');
  }

  function clear() {
    runs.stop();
    turns = [];
    transcript.replaceChildren(starters('Set a slider, then ask. The same question at +1 and −1 shows what a vector does.', choosePrompt));
  }
  clear();

  return {
    busy: runs.busy,
    stop: runs.stop,
    clear,
    send(text) {
      const turn = { text, view: new ReplyView({ label: 'Reply', onRetry: () => run(turn) }) };
      if (turns.length === 0) transcript.replaceChildren();
      turns.push(turn);
      transcript.append(el('div', { class: 'turn' },
        el('div', { class: 'asked', dir: 'auto' }, el('h2', { class: 'hidden' }, 'You'), el('p', {}, visible(text))), turn.view.node));
      return run(turn);
    },
    /** The request that sending `text` now would make; without text the last one sent, or an example. */
    request: (text) => (text ? null : turns.at(-1)?.request) ?? requestFor(text || EXAMPLE, turns.length),
    lastPrompt: () => turns.at(-1)?.text ?? '',
  };
}
