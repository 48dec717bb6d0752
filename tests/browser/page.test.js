// The playground in a real browser. Against the mock everything is tested; against a real server (STEERKIT_URL) what does
// not need a server that misbehaves on request.

import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { after, before, test } from 'node:test';

import { REAL, ended, lastReply, launch, open, send, setVector, slowLine } from './browser.js';

const axeSource = await readFile(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
const PROMPT = 'How should I store olive oil after opening the bottle?';
const mockOnly = { skip: REAL ? 'needs the mock' : false };
const MAX_BYTES = 300 * 1024;

let browser;
before(async () => {
  browser = await launch();
});
after(() => browser.close());

/** A test with the page open; at its end the page must have logged no error and asked nobody but its server. */
function pageTest(name, options, body) {
  test(name, { timeout: 180000, skip: options.skip }, async () => {
    const opened = await open(browser, options);
    try {
      opened.vector = await opened.page.locator('.vector h3').first().textContent({ timeout: 1000 }).catch(() => null);
      await body(opened);
      assert.deepEqual(opened.problems, []);
      assert.deepEqual(opened.requests.filter((url) => !url.startsWith(opened.url) && !url.startsWith('data:')), []);
    } finally {
      await opened.close();
    }
  });
}

async function checkAxe(page, where) {
  await page.evaluate(axeSource);
  const violations = await page.evaluate(async () => (await window.axe.run()).violations.map(({ id, nodes }) =>
    `${id}: ${nodes.map(({ html, failureSummary }) => `${html} ${failureSummary}`).slice(0, 3).join(' | ')}`));
  assert.deepEqual(violations, [], where);
}

const noSideways = async (page) =>
  assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), 'scrolls sideways');

pageTest('a slider moves by keyboard and by typing, and can be muted and reset', {}, async ({ page, vector }) => {
  const row = page.locator('.vector').first();
  const slider = row.getByRole('slider');
  const typed = page.getByLabel(`${vector}, multiplier`);
  await slider.focus();
  for (let i = 0; i < 5; i++) await page.keyboard.press('ArrowRight');
  assert.equal(await typed.inputValue(), '+0.5');
  assert.match(await slider.getAttribute('aria-valuetext'), /^\+0\.5, toward/);
  await setVector(page, vector, '-1.26');
  assert.equal(await typed.inputValue(), '−1.3');
  assert.equal(await slider.inputValue(), '-1.3');
  await typed.fill('nonsense');
  await typed.press('Enter');
  assert.equal(await typed.inputValue(), '−1.3');
  await row.getByRole('button', { name: 'Mute' }).click();
  assert.equal(await page.locator('#steering-summary').textContent(), 'plain model');
  await row.getByRole('button', { name: 'Mute' }).click();
  assert.match(await page.locator('#steering-summary').textContent(), /−1\.3/);
  await row.getByRole('button', { name: 'Reset' }).click();
  assert.equal(await typed.inputValue(), '0');
});

pageTest('the combined dose is shown, and warned past 0.8', mockOnly, async ({ page }) => {
  await setVector(page, 'wealth-seeking', '2');
  assert.match(await page.locator('#combined').textContent(), /Total dose 0\.68/);
  assert.equal(await page.locator('#combined .warning').count(), 0);
  await setVector(page, 'formality', '-1.5');
  assert.match(await page.locator('#combined').textContent(), /Total dose 0\.82.*tend to break/);
});

pageTest('a reply streams, with the steering that was applied', { context: {} }, async ({ page, mock, vector }) => {
  await slowLine(page);
  await page.locator('#settings-card summary').click();
  await page.fill('#set-temperature', '0');
  await setVector(page, vector, '1.5');
  await send(page, PROMPT);
  const reply = lastReply(page);
  await page.waitForFunction(() => document.querySelector('.reply.running .text')?.textContent.length > 3);
  await ended(reply);
  assert.match(await reply.textContent(), /\+1\.5/);
  assert.match(await reply.locator('footer').textContent(), /(complete|max tokens) · \d+ tokens/);
  assert.equal(await page.inputValue('#prompt'), '');
  if (!mock) return;
  assert.deepEqual(mock.log[0].body.steering, { vectors: [{ name: vector, scale: 1.5 }] });
  await send(page, 'And then?');
  await ended(lastReply(page));
  assert.deepEqual(mock.log[1].body.messages.map(({ role }) => role), ['user', 'assistant', 'user']);
});

pageTest('Stop and Escape keep what has arrived', { mock: { delay: 20 } }, async ({ page }) => {
  await slowLine(page);
  await page.locator('#settings-card summary').click();
  // The tiny model's context holds two short prompts and this; when it draws tokens it may end at once.
  await page.fill('#set-temperature', '0');
  await page.fill('#set-max_tokens', REAL ? '200' : '2000');
  for (const stop of [() => page.click('#send'), () => page.keyboard.press('Escape')]) {
    await send(page, 'Tell me everything. fault:long');
    await page.waitForFunction(() => document.querySelector('.reply.running .text')?.textContent.length > 10);
    await stop();
    await ended(lastReply(page));
    assert.match(await lastReply(page).locator('footer').textContent(), /stopped/);
    assert.ok((await lastReply(page).locator('.text').textContent()).length > 10);
    assert.equal(await page.locator('#send').textContent(), 'Send');
  }
});

pageTest('five multipliers stream side by side from one seed', {}, async ({ page, mock, vector }) => {
  await page.getByRole('tab', { name: 'Chat' }).focus();
  await page.keyboard.press('ArrowRight');
  if (REAL) {
    await page.locator('#settings-card summary').click();
    await page.fill('#set-max_tokens', '24');
  }
  await page.selectOption('#compare-vector', vector);
  await send(page, PROMPT);
  const columns = page.locator('#grid .reply');
  assert.equal(await columns.count(), 5);
  for (let i = 0; i < 5; i++) await ended(columns.nth(i));
  assert.deepEqual(await page.locator('#grid .reply h3 b').allTextContents(), ['−2', '−1', '0', '+1', '+2']);
  if (!mock) return;
  assert.equal(new Set(mock.log.map(({ body }) => body.seed)).size, 1);
  assert.deepEqual(mock.log.map(({ body }) => body.steering.vectors[0]?.scale ?? 0).sort((a, b) => a - b), [-2, -1, 0, 1, 2]);
});

pageTest('tokens are shaded, and a click shows the likeliest before and after', {}, async ({ page, vector }) => {
  await setVector(page, vector, '2');
  await send(page, PROMPT);
  await ended(lastReply(page));
  const plain = await lastReply(page).locator('.text').textContent();
  await page.getByRole('button', { name: 'Shade tokens' }).click();
  await page.waitForSelector('.shaded .token', { state: 'attached' });
  assert.equal(await page.locator('.shaded > [role=group]').textContent(), plain);
  assert.ok(await page.locator('.shaded > [role=group] .token:is(.up, .down)').count() > 0);
  await page.locator('.shaded .token').first().focus();
  for (const key of ['ArrowRight', 'ArrowRight', 'Enter']) await page.keyboard.press(key);
  const popover = page.getByRole('dialog');
  await popover.waitFor();
  assert.match(await popover.textContent(), /nats against the unsteered model/);
  assert.equal(await popover.locator('table').count(), 2);
  assert.ok(await popover.locator('tr').count() >= 18);
  await checkAxe(page, 'popover');
  await page.keyboard.press('Escape');
  await popover.waitFor({ state: 'detached' });
  assert.equal(await page.evaluate(() => [...document.activeElement.parentElement.children].indexOf(document.activeElement)), 2);
  await page.getByRole('button', { name: 'Shade tokens' }).click();
  assert.equal(await lastReply(page).locator('.text').textContent(), plain);
});

pageTest('a link carries the state, fills in the form and sends nothing', {}, async ({ page, vector, mock, url }) => {
  await setVector(page, vector, '-0.7');
  await page.locator('#settings-card summary').click();
  await page.fill('#set-seed', '42');
  await page.fill('#set-system', 'Be kind.');
  await page.fill('#prompt', PROMPT);
  await page.click('#share');
  const link = await page.evaluate(() => navigator.clipboard.readText());
  assert.ok(link.startsWith(`${url}/#v=1&`), link);
  await page.goto('about:blank');
  await page.goto(link);
  await page.waitForSelector('#notice:not([hidden])');
  assert.match(await page.locator('#notice').textContent(), /Filled in from a link.*system prompt.*Nothing has been sent/);
  assert.equal(await page.inputValue('#prompt'), PROMPT);
  assert.equal(await page.getByLabel(`${vector}, multiplier`).inputValue(), '−0.7');
  assert.equal(await page.inputValue('#set-seed'), '42');
  assert.equal(await page.inputValue('#set-system'), 'Be kind.');
  assert.equal(new URL(page.url()).hash, '');
  assert.deepEqual(mock?.log ?? [], []);
  assert.equal(await page.locator('.reply').count(), 0);
});

const HOSTILE = `#v=1&view=compare&steer=${encodeURIComponent('formality=1e9,<img src=x onerror=window.pwned=1>=1,../../etc/passwd=2,gone=1,formality=99')}`
  + `&vector=${encodeURIComponent('"><script>window.pwned=1</script>')}&prompt=${encodeURIComponent('<script>window.pwned=1</script>\u202e')}&seed=-1&temperature=NaN`;

pageTest('a hostile link is capped and explained, and runs nothing', { hash: HOSTILE }, async ({ page, mock }) => {
  const notice = await page.locator('#notice').textContent();
  assert.match(notice, /no vector gone/);
  assert.match(notice, /Left out: .*a vector/);
  assert.equal(await page.inputValue('#prompt'), '<script>window.pwned=1</script>');
  await page.waitForTimeout(300);
  assert.equal(await page.evaluate(() => window.pwned), undefined);
  assert.deepEqual(mock?.log ?? [], []);
  assert.equal(await page.locator('.reply').count(), 0);
});

pageTest('model output is text only', { ...mockOnly, mock: { delay: 20 } }, async ({ page }) => {
  await send(page, 'fault:xss <img src=x onerror="window.pwned=9">');
  await ended(lastReply(page));
  const shown = await lastReply(page).locator('.text').textContent();
  assert.match(shown, /<script>window\.pwned=2<\/script><svg onload=window\.pwned=3>/);
  assert.match(shown, /safe \[U\+202E\]evil\[U\+202C\] \[U\+2066\]x\[U\+2069\]/);
  assert.equal(await page.locator('#transcript :is(img, script, iframe, style, a, b b)').count(), 0);
  assert.equal(await page.evaluate(() => window.pwned), undefined);
  assert.ok(await page.locator('#prompt').isVisible());
});

pageTest('a cut stream, a lost connection and a refusal say what happened', mockOnly, async ({ page }) => {
  await send(page, 'fault:cut');
  await ended(lastReply(page));
  assert.match(await lastReply(page).textContent(), /Cut short\. The worker stopped/);
  assert.ok((await lastReply(page).locator('.text').textContent()).length > 5);
  await send(page, 'fault:drop');
  await ended(lastReply(page));
  assert.match(await lastReply(page).textContent(), /Cut short\. The stream was cut/);
  await send(page, 'fault:refuse');
  await ended(lastReply(page));
  assert.match(await lastReply(page).textContent(), /No reply\. Steering scale 9 is outside -3 to 3/);
  await send(page, 'fault:warn');
  await ended(lastReply(page));
  assert.match(await lastReply(page).locator('.warning').textContent(), /made with another file/);
});

pageTest('a busy server: the chat counts down, the comparison waits by itself', { ...mockOnly, mock: { busy: 3 } }, async ({ page }) => {
  await send(page, 'fault:busy');
  await ended(lastReply(page));
  const again = lastReply(page).getByRole('button', { name: /Try again/ });
  assert.match(await again.textContent(), /in 1 s/);
  assert.ok(await again.isDisabled());
  await page.click('#tab-compare');
  await send(page, 'fault:busy');
  await page.locator('#grid').getByText('next try in 1 s').first().waitFor();
  await page.waitForFunction(() => document.querySelectorAll('#grid .reply .buttons button').length >= 10);
  assert.equal(await page.locator('#grid .error').count(), 0);
});

pageTest('a key is asked for, and again when it is wrong', { ...mockOnly, mock: { key: 'secret' }, wait: '#key' }, async ({ page }) => {
  await page.fill('#key', 'wrong');
  await page.keyboard.press('Enter');
  await page.getByText('did not accept').waitFor();
  await checkAxe(page, 'key');
  await page.fill('#key', 'secret');
  await page.keyboard.press('Enter');
  await page.waitForSelector('.vector');
  assert.deepEqual(await page.evaluate(() => [sessionStorage.length, localStorage.length]), [1, 0]);
  await page.click('#export');
  const code = await page.locator('dialog pre').textContent();
  assert.match(code, /STEERKIT_API_KEY/);
  assert.doesNotMatch(code, /secret/);
});

pageTest('without vectors the page says what to do', { ...mockOnly, mock: { vectors: [] }, wait: '.empty' }, async ({ page }) => {
  assert.match(await page.locator('.empty').textContent(), /no vectors yet.*steerkit train/);
  await checkAxe(page, 'no vectors');
  await page.click('#tab-compare');
  assert.ok(await page.locator('#send').isDisabled());
});

pageTest('a model without a chat template goes on from the text', { ...mockOnly, mock: { template: false } }, async ({ page, mock }) => {
  assert.match(await page.locator('#hint').textContent(), /No chat template/);
  await send(page, 'Once upon a time');
  await ended(lastReply(page));
  assert.equal(mock.log[0].path, '/v1/completions');
  assert.equal(mock.log[0].body.prompt, 'Once upon a time');
});

for (const [where, profiles] of [['on the server', true], ['in this browser', false]]) {
  pageTest(`profiles are kept ${where}`, { ...mockOnly, mock: { profiles } }, async ({ page, vector }) => {
    await page.getByText('Profiles', { exact: true }).click();
    await page.getByText(`Kept ${where}`).waitFor();
    await setVector(page, vector, '1.2');
    await page.fill('#profile-name', 'My formal self');
    await page.getByRole('button', { name: 'Save sliders' }).click();
    await page.getByRole('button', { name: /^my-formal-self/ }).waitFor();
    await setVector(page, vector, '-2');
    await page.fill('#profile-name', 'my-formal-self');
    await page.getByRole('button', { name: 'Save sliders' }).click();
    await page.locator('.profile').getByText('−2').waitFor();
    await setVector(page, vector, '0');
    await page.getByRole('button', { name: /^my-formal-self/ }).click();
    assert.equal(await page.getByLabel(`${vector}, multiplier`).inputValue(), '−2');
    await page.reload();
    await page.waitForSelector('.vector');
    await page.getByText('Profiles', { exact: true }).click();
    await page.getByRole('button', { name: 'Delete profile my-formal-self' }).click();
    await page.locator('.profile').waitFor({ state: 'detached' });
  });
}

pageTest('the request is exported and copied', {}, async ({ page, vector }) => {
  await setVector(page, vector, '1');
  await page.fill('#prompt', PROMPT);
  await page.click('#export');
  await page.getByRole('radio', { name: 'JSON' }).check();
  await page.getByRole('button', { name: 'Copy', exact: true }).click();
  const body = JSON.parse(await page.evaluate(() => navigator.clipboard.readText()));
  assert.deepEqual(body.steering, { vectors: [{ name: vector, scale: 1 }] });
  assert.equal(body.messages.at(-1).content, PROMPT);
  await checkAxe(page, 'export');
  await page.keyboard.press('Escape');
  await page.locator('dialog').waitFor({ state: 'detached' });
});

for (const colorScheme of ['light', 'dark']) {
  pageTest(`no axe violations, ${colorScheme}`, { context: { colorScheme } }, async ({ page, vector }) => {
    await checkAxe(page, 'start');
    for (const summary of await page.locator('aside summary:visible').all()) await summary.click();
    await page.locator('#steering summary').click();
    await setVector(page, vector, '3');
    await send(page, PROMPT);
    await ended(lastReply(page));
    await page.getByRole('button', { name: 'Shade tokens' }).click();
    await page.waitForSelector('.shaded .token', { state: 'attached' });
    await checkAxe(page, 'chat');
    await page.click('#tab-compare');
    await send(page, PROMPT);
    for (const reply of await page.locator('#grid .reply').all()) await ended(reply);
    await checkAxe(page, 'compare');
  });
}

pageTest('360 px: columns stack, nothing scrolls sideways', { context: { viewport: { width: 360, height: 740 }, hasTouch: true, isMobile: true } }, async ({ page, vector }) => {
  for (const summary of await page.locator('aside summary').all()) await summary.click();
  await page.locator('#steering summary').click();
  await noSideways(page);
  await page.fill('#set-temperature', '0');
  await page.fill('#set-max_tokens', '60');
  await setVector(page, vector, '2.5');
  await send(page, `${PROMPT} ${'unbroken'.repeat(30)}`);
  await ended(lastReply(page));
  await page.getByRole('button', { name: 'Shade tokens' }).click();
  await page.locator('.shaded .token').nth(3).click();
  await page.getByRole('dialog').waitFor();
  await noSideways(page);
  await page.keyboard.press('Escape');
  await page.click('#tab-compare');
  await send(page, PROMPT);
  for (const reply of await page.locator('#grid .reply').all()) await ended(reply);
  const lefts = await page.locator('#grid .reply').evaluateAll((nodes) => nodes.map((node) => node.getBoundingClientRect().left));
  assert.equal(new Set(lefts).size, 1);
  await noSideways(page);
});

pageTest('everything can be reached by Tab with a visible focus', {}, async ({ page }) => {
  const seen = new Set();
  for (let i = 0; i < 60; i++) {
    await page.keyboard.press('Tab');
    const focus = await page.evaluate(() => {
      const node = document.activeElement;
      const style = getComputedStyle(node);
      const ring = style.outlineStyle !== 'none' || node.type === 'range' || getComputedStyle(node.parentElement).boxShadow !== 'none';
      return { id: node.id || node.getAttribute('aria-label') || node.textContent, ring, body: node === document.body };
    });
    if (focus.body) break;
    assert.ok(focus.ring, `no visible focus on ${focus.id}`);
    seen.add(focus.id);
  }
  for (const id of ['tab-chat', 'share', 'export', 'prompt', 'send', 'clear']) assert.ok(seen.has(id), id);
});

test('the page is light and its answer to scripts is no', async () => {
  const { page, url, close } = await open(browser);
  try {
    const names = await page.evaluate(() => performance.getEntriesByType('resource').map(({ name }) => name));
    let bytes = 0;
    for (const name of ['/', ...names.filter((n) => n.includes('/assets/')).map((n) => new URL(n).pathname)]) {
      bytes += (await (await fetch(url + name)).arrayBuffer()).byteLength;
    }
    assert.ok(bytes > 20000 && bytes < MAX_BYTES, `${bytes} bytes`);
    const { headers } = await fetch(`${url}/`);
    assert.match(headers.get('content-security-policy'), /default-src 'self'/);
    assert.doesNotMatch(headers.get('content-security-policy'), /unsafe/);
    const html = await (await fetch(`${url}/`)).text();
    assert.doesNotMatch(html, /<script>|<style|\sstyle=|\son[a-z]+=/);
  } finally {
    await close();
  }
});
