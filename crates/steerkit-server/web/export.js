// The current request as something to paste elsewhere: curl, Python with the openai client, JSON. Never the key itself.

// Characters that JSON allows but that a terminal or an editor may act on or hide.
const HIDDEN = /[\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]/g;
const escaped = (text) => text.replace(HIDDEN, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`);

const WORDS = { json: new Map(), python: new Map([[null, 'None'], [true, 'True'], [false, 'False']]) };

/** A value as JSON or as a Python literal: objects without lists or objects inside on one line, others laid out. */
export function literal(value, language, indent = '') {
  if (WORDS[language].has(value)) return WORDS[language].get(value);
  if (value === null || typeof value !== 'object') return escaped(JSON.stringify(value));
  const inner = `${indent}  `;
  const [open, close] = Array.isArray(value) ? '[]' : '{}';
  const items = Object.entries(value).map(([key, item]) => {
    const text = literal(item, language, inner);
    return Array.isArray(value) ? text : `${JSON.stringify(key)}: ${text}`;
  });
  const flat = Object.values(value).every((item) => item === null || typeof item !== 'object');
  return flat ? open + items.join(', ') + close : `${open}\n${inner}${items.join(`,\n${inner}`)}\n${indent}${close}`;
}

/** The body as JSON. */
export const toJson = ({ body }) => literal(body, 'json');

/** A command for a POSIX shell. */
export function toCurl({ path, body }, origin, hasKey) {
  const data = toJson({ body }).replaceAll("'", "'\\''");
  const auth = hasKey ? '  -H "Authorization: Bearer $STEERKIT_API_KEY" \\\n' : '';
  return `curl ${origin}${path} \\\n  -H 'Content-Type: application/json' \\\n${auth}  -d '${data}'\n`;
}

/** A Python program that uses the openai package; what that package does not know goes through `extra_body`. */
export function toPython({ path, body }, origin, hasKey) {
  const { steering, ...known } = body;
  const chat = path.endsWith('/chat/completions');
  const key = hasKey ? 'os.environ["STEERKIT_API_KEY"]' : '"none"';
  const fields = { ...known, ...(steering && { extra_body: { steering } }) };
  const args = Object.entries(fields).map(([name, value]) => `    ${name}=${literal(value, 'python', '    ')},\n`);
  return [
    hasKey ? 'import os\n\n' : '',
    'from openai import OpenAI\n\n',
    `client = OpenAI(base_url="${origin}/v1", api_key=${key})\n`,
    `reply = client.${chat ? 'chat.completions' : 'completions'}.create(\n${args.join('')})\n`,
    `print(reply.choices[0].${chat ? 'message.content' : 'text'})\n`,
  ].join('');
}
