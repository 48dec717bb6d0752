// Named settings of all sliders: on the server, scoped to the key, where it offers profiles; else in this browser.

import { json } from './api.js';
import { announce, el } from './dom.js';
import { errorText, steeringMarks } from './reply.js';
import { NAME } from './share.js';
import { SCALE, activeVectors, setSliders } from './state.js';
import { visible } from './text.js';

const LOCAL = 'steerkit-profiles';
/** Answers that say that a server has no profiles. */
const ABSENT = new Set([404, 405, 501]);

/** The profiles in a stored or received value, without what is not one. */
export function readProfiles(value) {
  const list = Array.isArray(value) ? value : (value?.data ?? []);
  return list.filter(({ name }) => NAME.test(name)).map(({ name, steering }) => ({
    name,
    entries: (steering?.vectors ?? [])
      .filter((entry) => NAME.test(entry.name) && Math.abs(entry.scale) <= SCALE)
      .map((entry) => ({ name: entry.name, scale: entry.scale })),
  }));
}

const asStored = ({ name, entries }) => ({ name, steering: { vectors: entries } });

const browserStore = {
  where: 'Kept in this browser: the server has no profiles.',
  list() {
    try {
      return readProfiles(JSON.parse(localStorage.getItem(LOCAL) ?? '[]'));
    } catch {
      return [];
    }
  },
  write: (profiles) => localStorage.setItem(LOCAL, JSON.stringify(profiles.map(asStored))),
  save(profile) {
    this.write([...this.list().filter(({ name }) => name !== profile.name), profile]);
  },
  remove(name) {
    this.write(this.list().filter((profile) => profile.name !== name));
  },
};

const serverStore = {
  where: 'Kept on the server, for your key.',
  list: async () => readProfiles(await json('/v1/profiles')),
  save: (profile) => json(`/v1/profiles/${profile.name}`, { method: 'PUT', body: asStored(profile) }),
  remove: (name) => json(`/v1/profiles/${name}`, { method: 'DELETE' }),
};

/** Mounts the panel; `load()` asks the server for its profiles. */
export function mountProfiles({ store, panel }) {
  const list = el('ul', { class: 'profiles' });
  const where = el('p', { class: 'soft' });
  const problem = el('p', { class: 'error', hidden: true });
  const name = el('input', {
    type: 'text', id: 'profile-name', maxlength: '64', autocomplete: 'off', spellcheck: 'false', placeholder: 'name',
  });
  const form = el('form', { class: 'line', onsubmit: (event) => {
    event.preventDefault();
    save();
  } }, el('label', { class: 'hidden', for: 'profile-name' }, 'Name of the profile'), name, el('button', { type: 'submit' }, 'Save sliders'));
  panel.replaceChildren(list, form, problem, where);
  let backend = serverStore;
  let profiles = [];

  function show() {
    where.textContent = backend.where;
    list.replaceChildren(...profiles.map((profile) => el('li', {},
      el('button', { type: 'button', class: 'profile', onclick: () => apply(profile) },
        el('b', {}, profile.name), el('span', {}, ...steeringMarks(profile.entries))),
      el('button', { type: 'button', class: 'quiet', 'aria-label': `Delete profile ${profile.name}`, onclick: () => remove(profile) }, 'Delete'))));
  }

  function apply({ name: chosen, entries }) {
    let missing = [];
    store.update((state) => {
      missing = setSliders(state, entries);
    });
    fail(missing.length > 0 ? `The server has no vector ${missing.join(', ')}.` : '');
    announce(`Sliders set from profile ${chosen}`);
  }

  function fail(text) {
    problem.textContent = visible(text);
    problem.hidden = text === '';
    if (text) announce(text);
  }

  /** Does `change`, reads the list again and shows it, or shows what went wrong. */
  async function attempt(change, done) {
    try {
      await change();
      profiles = await backend.list();
      fail('');
      if (done) announce(done);
    } catch (error) {
      fail(errorText(error));
    }
    show();
  }

  async function save() {
    const wanted = name.value.trim().toLowerCase().replace(/\s+/g, '-');
    if (!NAME.test(wanted)) return fail('A name has 1 to 64 of a–z, 0–9, dot, dash and underscore.');
    const profile = { name: wanted, entries: activeVectors(store.state) };
    await attempt(async () => backend.save(profile), `Profile ${wanted} saved`);
    if (problem.hidden) name.value = '';
  }

  async function remove(profile) {
    await attempt(async () => backend.remove(profile.name), `Profile ${profile.name} deleted`);
    name.focus();
  }

  return {
    async load() {
      try {
        profiles = await serverStore.list();
        backend = serverStore;
      } catch (error) {
        if (!ABSENT.has(error.status)) fail(errorText(error));
        backend = browserStore;
        profiles = browserStore.list();
      }
      show();
    },
  };
}
