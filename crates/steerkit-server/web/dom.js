// Building elements. Text goes in as text nodes only; nothing on this page parses HTML at run time.

/**
 * An element. In `props`, functions are listeners (`onclick`), `true` sets an empty attribute, `false` and null leave it
 * out, and everything else is an attribute. Children are elements or text.
 */
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (typeof value === 'function') node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, '');
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
}

/** The element with this id. */
export const byId = (id) => document.getElementById(id);

let announceTimer = 0;

/** Says one short sentence to screen readers. Calls in quick succession are merged into the last one. */
export function announce(sentence) {
  clearTimeout(announceTimer);
  announceTimer = setTimeout(() => {
    byId('status').textContent = sentence;
  }, 150);
}

/** Copies text and shows on the button that it is done. */
export async function copyFrom(button, text) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = 'Copied';
    announce('Copied');
  } catch {
    button.textContent = 'Not allowed';
    announce('The browser does not allow copying here');
  }
  setTimeout(() => {
    button.textContent = label;
  }, 1500);
}
