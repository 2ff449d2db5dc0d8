// The chat page in a real Chromium, served by the stack of the test.
import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { chromium } from 'playwright-core';
import { start as startStack } from '../stack.js';

const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');

const program =
  process.env.CHROMIUM ?? ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'].find(existsSync);

export async function launch(t) {
  if (!program) throw new Error('no Chromium: install it (`apt-get install chromium`), or name it with CHROMIUM=');
  const browser = await chromium.launch({ executablePath: program, args: ['--no-sandbox'] });
  t.after(() => browser.close());
  return browser;
}

/** Starts a stack that serves the page, at a free port. */
export const start = (t, args = [], { webPort = '0', ...options } = {}) =>
  startStack(t, ['--web', 'crates/client/web', '--web-port', webPort, ...args], options);

/** Opens the page as a user. What the page logs as an error makes the test fail. */
export async function open(t, browser, stack, user, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1120, height: 720 }, ...options });
  const page = await context.newPage();
  page.errors = [];
  page.on('pageerror', (error) => page.errors.push(String(error)));
  page.on('console', (message) => {
    // The browser logs each refused handshake as an error. A test that cuts the network expects that.
    if (message.type() === 'error' && !/ERR_CONNECTION|ERR_INTERNET|WebSocket/.test(message.text()))
      page.errors.push(message.text());
  });
  page.setDefaultTimeout(20_000);
  await page.goto(`${stack.site}?url=${encodeURIComponent(stack.url())}`);
  await page.getByLabel('Your name').fill(user);
  await page.getByRole('button', { name: 'Start' }).click();
  await page.locator('#state').getByText('Connected').waitFor();
  return page;
}

/** Goes to a conversation by typing its name. */
export async function go(page, name) {
  await page.getByLabel('Topic, or @ and a name').fill(name);
  await page.keyboard.press('Enter');
  await page.locator('#title').getByText(name.replace(/^@/, ''), { exact: true }).waitFor();
}

export async function say(page, text) {
  await page.getByLabel('Message', { exact: true }).fill(text);
  await page.keyboard.press('Enter');
}

/**
 * Returns the longest task of the page while `act` runs, in ms of CPU time. On a busy machine a task lasts longer, and uses
 * no more of that.
 */
export async function longestTask(browser, page, act) {
  await browser.startTracing(page, { categories: ['disabled-by-default-devtools.timeline'] });
  await act();
  const { traceEvents } = JSON.parse(await browser.stopTracing());
  const main = traceEvents.filter(({ name, args }) => name === 'thread_name' && args.name === 'CrRendererMain');
  const isMain = ({ pid, tid }) => main.some((thread) => thread.pid === pid && thread.tid === tid);
  const tasks = traceEvents.filter((event) => event.name === 'RunTask' && event.tdur !== undefined && isMain(event));
  assert.ok(tasks.length > 100, `only ${tasks.length} tasks were traced`);
  const longest = Math.max(...tasks.map(({ tdur }) => tdur)) / 1000;
  console.log(`the longest of ${tasks.length} tasks used ${Math.round(longest)} ms of CPU time`);
  return longest;
}

/** Fails if axe finds anything on the page, light or dark. */
export async function isAccessible(page, where) {
  for (const colorScheme of ['light', 'dark']) {
    await page.emulateMedia({ colorScheme });
    // The page's own policy lets no foreign script in, so this one comes from the driver.
    await page.evaluate(axe);
    const { violations } = await page.evaluate(() => globalThis.axe.run());
    const found = violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).join(' ')}`);
    assert.deepEqual(found, [], `${where}, ${colorScheme}`);
  }
}
