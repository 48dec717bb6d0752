// Text that the page shows: characters that hide or reorder others made visible, and numbers with their sign.

const CONTROLS = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f]/g;
const BIDI = /[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;

const named = (c) => `[U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, '0')}]`;

/** The text with control characters and bidirectional controls written out, so that nothing in it moves other text. */
export const visible = (text) => text.replace(BIDI, named).replace(CONTROLS, named);

/** The text without those characters. */
export const stripped = (text) => text.replace(BIDI, '').replace(CONTROLS, '');

/** A number with its sign and at most so many decimals: `+1.5`, `−2`, `0`. */
export function signed(value, digits = 1) {
  const size = Number(Math.abs(value).toFixed(digits));
  if (size === 0) return '0';
  return `${value < 0 ? '−' : '+'}${size}`;
}

/** A relative dose with two decimals. */
export const dose = (value) => value.toFixed(2);

/** `toward`, `away` or `plain`: the class and the word for the direction of a multiplier. */
export function direction(scale) {
  if (scale > 0) return 'toward';
  return scale < 0 ? 'away' : 'plain';
}

/** A count with its noun: `1 token`, `1,024 tokens`. */
export const count = (n, noun) => `${n.toLocaleString('en')} ${noun}${n === 1 ? '' : 's'}`;
