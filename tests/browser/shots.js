// Writes the guide's pictures: node shots.js FOLDER. From a real server with STEERKIT_URL, else from the mock.

import { ended, lastReply, launch, open, send, setVector } from './browser.js';

const [folder] = process.argv.slice(2);
const PROMPT = 'How should I store olive oil after opening the bottle?';
const browser = await launch();

/** Opens the page, makes it ready, and writes the picture. */
async function shot(name, context, prepare) {
  const { page, close } = await open(browser, { context });
  const vector = await page.locator('.vector h3').first().textContent();
  await page.locator('#settings-card summary').click();
  await page.fill('#set-seed', '7');
  await page.fill('#set-max_tokens', '60');
  await page.locator('#settings-card summary').click();
  await prepare(page, vector);
  await page.screenshot({ path: `${folder}/playground-${name}.png` });
  await close();
}

async function chatWithTokens(page, vector) {
  await setVector(page, vector, '1.5');
  await send(page, PROMPT);
  await ended(lastReply(page));
  await page.getByRole('button', { name: 'Shade tokens' }).click();
  await page.locator('.shaded .token').nth(6).click();
  await page.getByRole('dialog').waitFor();
}

async function chat(page, vector) {
  for (const scale of ['1.5', '-1.5']) {
    await setVector(page, vector, scale);
    await send(page, PROMPT);
    await ended(lastReply(page));
  }
}

async function compare(page, vector) {
  await page.click('#tab-compare');
  await page.selectOption('#compare-vector', vector);
  await send(page, PROMPT);
  for (const reply of await page.locator('#grid .reply').all()) await ended(reply);
}

const viewport = { width: 1280, height: 800 };
await shot('light', { viewport }, chatWithTokens);
await shot('dark', { viewport, colorScheme: 'dark' }, chat);
await shot('compare', { viewport: { width: 1440, height: 800 } }, compare);
await shot('phone', { viewport: { width: 360, height: 900 }, colorScheme: 'dark', isMobile: true, hasTouch: true }, compare);
await browser.close();
