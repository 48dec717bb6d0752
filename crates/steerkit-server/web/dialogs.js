// The two modal dialogs: the key that a server asks for, and the current request to copy.

import { storeKey, storedKey } from './api.js';
import { copyFrom, el } from './dom.js';
import { toCurl, toJson, toPython } from './export.js';

let asking = null;

/** Asks for the server's key and keeps it for this tab. Resolves to false when the user gives none. One at a time. */
export function askKey() {
  asking ??= new Promise((resolve) => {
    const input = el('input', { id: 'key', type: 'password', autocomplete: 'off', required: true });
    const wrong = storedKey() ? el('p', { class: 'error' }, 'The server did not accept the key.') : null;
    const dialog = el('dialog', { 'aria-labelledby': 'key-title' },
      el('h2', { id: 'key-title' }, 'Key'),
      wrong,
      el('p', {}, 'This server asks for an API key. It is kept for this tab only and sent to this server only.'),
      el('form', { onsubmit: (event) => {
        event.preventDefault();
        storeKey(input.value.trim());
        dialog.close('given');
      } }, el('label', { for: 'key' }, 'API key'), input,
      el('div', { class: 'line' },
        el('button', { type: 'button', onclick: () => dialog.close('') }, 'Cancel'),
        el('button', { type: 'submit', class: 'primary' }, 'Continue'))));
    dialog.addEventListener('close', () => {
      dialog.remove();
      asking = null;
      resolve(dialog.returnValue === 'given');
    });
    document.body.append(dialog);
    dialog.showModal();
  });
  return asking;
}

/** Shows a request as curl, Python and JSON, with a note on which request it is. */
export function showExport(request, note) {
  const hasKey = storedKey() !== null;
  const forms = {
    curl: toCurl(request, location.origin, hasKey),
    Python: toPython(request, location.origin, hasKey),
    JSON: toJson(request),
  };
  const code = el('pre', { tabindex: '0', 'aria-label': 'Code' });
  let text = '';
  const choose = (name) => {
    text = forms[name];
    code.textContent = text;
  };
  const radios = Object.keys(forms).map((name, i) => el('label', { class: 'choice' },
    el('input', { type: 'radio', name: 'export-form', checked: i === 0, onchange: () => choose(name) }), el('span', {}, name)));
  const copy = el('button', { type: 'button', class: 'primary', onclick: () => copyFrom(copy, text) }, 'Copy');
  const dialog = el('dialog', { class: 'wide', 'aria-labelledby': 'export-title', onclose: () => dialog.remove() },
    el('h2', { id: 'export-title' }, 'This request'),
    el('div', { class: 'line' }, el('fieldset', { class: 'choices' }, el('legend', { class: 'hidden' }, 'Form'), ...radios), copy),
    code,
    note ? el('p', { class: 'soft' }, note) : null,
    hasKey ? el('p', { class: 'soft' }, 'The key is read from the environment variable STEERKIT_API_KEY.') : null,
    el('div', { class: 'line end' }, el('button', { type: 'button', onclick: () => dialog.close() }, 'Close')));
  choose('curl');
  document.body.append(dialog);
  dialog.showModal();
}
