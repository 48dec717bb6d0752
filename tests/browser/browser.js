// A Chromium with the playground open, for the tests and the pictures.

import { chromium } from 'playwright-core';

import { startMock } from './mock.js';

/** The address of a real server, or null for the mock. */
export const REAL = process.env.STEERKIT_URL?.replace(/\/$/, '') ?? null;

/** Starts the browser. */
export const launch = () => chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  // Chromium's sandbox does not start for root, as in containers.
  args: process.getuid?.() === 0 ? ['--no-sandbox'] : [],
});

/**
 * Opens the playground in a fresh context. Resolves to the page, the mock (null against a real server), what went wrong
 * on the page (`problems`), the URLs that it asked for, and `close()`. Options: `mock`, `context`, `hash`, `wait` (what
 * to wait for).
 */
export async function open(browser, { mock: mockOptions = {}, context: contextOptions = {}, hash = '', wait = '.vector' } = {}) {
  const mock = REAL ? null : await startMock(mockOptions);
  const url = REAL ?? mock.url;
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, ...contextOptions });
  await context.grantPermissions(['clipboard-read', 'clipboard-write'], { origin: url });
  const page = await context.newPage();
  const [problems, requests] = [[], []];
  page.on('pageerror', (error) => problems.push(String(error)));
  // Chromium logs refused requests as errors too; the page shows those itself.
  page.on('console', (message) => {
    if (message.type() === 'error' && !message.text().startsWith('Failed to load resource')) problems.push(message.text());
  });
  page.on('request', (request) => requests.push(request.url()));
  await page.goto(`${url}/${hash}`);
  await page.waitForSelector(wait);
  return {
    page, mock, url, problems, requests,
    async close() {
      await context.close();
      mock?.close();
    },
  };
}

/** Replies of a real server come over a slow line: a tiny model has written before anybody sees it writing. */
export async function slowLine(page) {
  if (!REAL) return;
  const session = await page.context().newCDPSession(page);
  const line = { offline: false, latency: 0, downloadThroughput: 20000, uploadThroughput: -1 };
  await session.send('Network.emulateNetworkConditions', line);
}

/** Types a prompt and sends it. */
export async function send(page, text) {
  await page.fill('#prompt', text);
  await page.press('#prompt', 'Enter');
}

/** Sets a vector by its typed value. */
export async function setVector(page, name, value) {
  await page.getByLabel(`${name}, multiplier`).fill(value);
  await page.getByLabel(`${name}, multiplier`).press('Enter');
}

/** The last reply of the chat, and its end. */
export const lastReply = (page) => page.locator('#transcript .reply').last();
export const ended = (reply) => reply.getByRole('button', { name: /Again|Try again/ }).waitFor({ timeout: 120000 });
