// The page: reads what the server has, mounts the parts, and connects the prompt box, the views and the links.

import { json, onKeyNeeded } from './api.js';
import { mountChat } from './chat.js';
import { mountCompare } from './compare.js';
import { askKey, showExport } from './dialogs.js';
import { announce, byId, copyFrom, el } from './dom.js';
import { mountProfiles } from './profiles.js';
import { errorText } from './reply.js';
import { mountSettings } from './settings.js';
import { decodeShare, encodeShare } from './share.js';
import { mountSliders } from './sliders.js';
import { activeVectors, createStore, setSliders } from './state.js';
import { visible } from './text.js';

const store = createStore();
const prompt = byId('prompt');
const sendButton = byId('send');
let view = 'chat';

onKeyNeeded(askKey);
mountSliders({ store, list: byId('vectors'), combined: byId('combined'), summary: byId('steering-summary'), reload: () => load() });
mountSettings({ store, panel: byId('settings'), summary: byId('settings-summary') });
const profiles = mountProfiles({ store, panel: byId('profiles') });
const chat = mountChat({ store, transcript: byId('transcript'), choosePrompt, onChange: showBusy });
const compare = mountCompare({ store, setup: byId('compare-setup'), grid: byId('grid'), choosePrompt, onChange: showBusy });
const current = () => (view === 'chat' ? chat : compare);

function choosePrompt(text) {
  prompt.value = text;
  prompt.focus();
}

/** Shows the button, the hint and the state of the box for the view and for what is under way in it. */
function showBusy() {
  const busy = current().busy();
  const { model, vectors } = store.state;
  const missing = view === 'compare' && vectors.length === 0;
  sendButton.textContent = busy ? 'Stop' : view === 'chat' ? 'Send' : 'Compare';
  sendButton.classList.toggle('stop', busy);
  sendButton.disabled = !busy && (!model || missing);
  byId('clear').hidden = view !== 'chat';
  const said = missing ? 'There is no vector to compare.' : model?.chat === false && 'No chat template: the model goes on from your text.';
  byId('hint').textContent = said || (busy ? 'Esc stops' : 'Enter sends, Shift+Enter breaks the line');
  byId('hint').classList.toggle('keys', !said);
}

function showView(name, focus = false) {
  view = name;
  for (const each of ['chat', 'compare']) {
    const on = each === name;
    byId(each).hidden = !on;
    byId(`tab-${each}`).setAttribute('aria-selected', String(on));
    byId(`tab-${each}`).tabIndex = on ? 0 : -1;
  }
  if (focus) byId(`tab-${name}`).focus();
  showBusy();
}

function showModel({ id, layers, context, chat: hasTemplate }) {
  const facts = [
    layers && `${layers} layers`,
    context && `context ${context.toLocaleString('en')}`,
    !hasTemplate && 'no chat template',
  ];
  byId('model').replaceChildren(el('b', {}, visible(id)), ` ${facts.filter(Boolean).join(' · ')}`);
}

/** Shows a message above the view, with buttons. */
function showNotice(kind, children, buttons) {
  const notice = byId('notice');
  const close = el('button', { type: 'button', class: 'quiet', onclick: () => hideNotice() }, 'Dismiss');
  notice.className = `notice ${kind}`;
  notice.replaceChildren(el('div', {}, ...children), el('div', { class: 'buttons' }, ...buttons, close));
  notice.hidden = false;
}

function hideNotice() {
  byId('notice').hidden = true;
}

/** Reads models, vectors, a link if there is one, and profiles. Sliders of vectors that are still there keep their place. */
async function load() {
  try {
    const [models, vectors] = await Promise.all([json('/v1/models'), json('/v1/vectors')]);
    const base = models.data.find((model) => model.steerkit) ?? models.data[0];
    const { layers, context, chat_template: template, default_system: defaultSystem } = base.steerkit ?? {};
    store.update((state) => {
      state.model = { id: base.id, layers, context, chat: template !== false, defaultSystem };
      state.vectors = vectors.data;
      const known = state.sliders;
      state.sliders = new Map(vectors.data.map(({ name }) => [name, known.get(name) ?? { scale: 0, muted: false }]));
    });
    showModel(store.state.model);
    hideNotice();
    readLink();
    await profiles.load();
  } catch (error) {
    const again = el('button', { type: 'button', class: 'quiet', onclick: () => load() }, 'Try again');
    showNotice('bad', [el('b', {}, 'The page could not be filled. '), visible(errorText(error))], [again]);
    announce(errorText(error));
  }
  showBusy();
}

/** Fills the form in from the fragment, if it is a link of this page. Sends nothing. */
function readLink() {
  const link = decodeShare(location.hash);
  if (!link) return;
  history.replaceState(null, '', location.pathname);
  let missing = [];
  store.update((state) => {
    missing = setSliders(state, link.steering);
    Object.assign(state.sampling, link.sampling);
    state.system = link.system;
  });
  prompt.value = link.prompt;
  compare.choose(link.vector);
  showView(link.view);
  if (link.system) byId('settings-card').open = true;
  const said = [
    el('b', {}, 'Filled in from a link. '),
    link.system ? 'It sets a system prompt: see Sampling. ' : '',
    missing.length > 0 ? `This server has no vector ${missing.join(', ')}. ` : '',
    link.dropped.length > 0 ? `Left out: ${[...new Set(link.dropped)].join(', ')}. ` : '',
    'Nothing has been sent.',
  ];
  showNotice('link', said, []);
  announce('Filled in from a link. Nothing has been sent.');
}

function linkHere() {
  const { sampling, system } = store.state;
  const fragment = encodeShare({
    view, steering: activeVectors(store.state), vector: view === 'compare' ? compare.vector() : '',
    prompt: prompt.value || chat.lastPrompt(), system, sampling,
  });
  return `${location.origin}${location.pathname}#${fragment}`;
}

function submit() {
  if (current().busy()) return current().stop();
  const text = prompt.value.trim();
  if (!text || sendButton.disabled) return prompt.focus();
  hideNotice();
  if (view === 'chat') prompt.value = '';
  current().send(text);
}

byId('composer').addEventListener('submit', (event) => {
  event.preventDefault();
  submit();
});
prompt.addEventListener('keydown', (event) => {
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!current().busy()) submit();
});
document.addEventListener('keydown', (event) => {
  const inDialog = document.querySelector('dialog[open], [popover]:popover-open');
  if (event.key === 'Escape' && !inDialog) current().stop();
});
byId('clear').addEventListener('click', () => {
  chat.clear();
  prompt.focus();
});
for (const name of ['chat', 'compare']) byId(`tab-${name}`).addEventListener('click', () => showView(name));
document.querySelector('[role=tablist]').addEventListener('keydown', ({ key }) => {
  if (key === 'ArrowLeft' || key === 'ArrowRight') showView(view === 'chat' ? 'compare' : 'chat', true);
});
byId('share').addEventListener('click', () => copyFrom(byId('share'), linkHere()));
byId('export').addEventListener('click', () => {
  const note = view === 'compare' ? 'This is the +1 column; the others differ in the scale.' : '';
  if (store.state.model) showExport(current().request(prompt.value.trim()), note);
});
addEventListener('hashchange', readLink);

store.update(() => {});
await load();
