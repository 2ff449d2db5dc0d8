// The chat page in a real Chromium, served by a server of the test.
import { existsSync, readFileSync } from 'node:fs';
import { once } from 'node:events';
import http from 'node:http';
import { extname } from 'node:path';
import { chromium } from 'playwright-core';

const program =
  process.env.CHROMIUM ?? ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'].find(existsSync);
const types = { '.html': 'text/html', '.css': 'text/css', '.js': 'text/javascript', '.svg': 'image/svg+xml' };

export async function launch(t) {
  if (!program) throw new Error('no Chromium: install it (`apt-get install chromium`), or name it with CHROMIUM=');
  const browser = await chromium.launch({ executablePath: program, args: ['--no-sandbox'] });
  t.after(() => browser.close());
  return browser;
}

/** Serves the folder of the page, and returns its address. */
export async function serve(t) {
  const folder = new URL('../../../web/', import.meta.url);
  const server = http.createServer((request, response) => {
    const path = new URL(request.url, 'http://localhost').pathname;
    const file = new URL(path === '/' ? 'index.html' : path.slice(1), folder);
    if (!existsSync(file)) return response.writeHead(404).end();
    response.writeHead(200, { 'content-type': types[extname(file.pathname)] ?? 'text/plain' }).end(readFileSync(file));
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => server.close());
  return `http://localhost:${server.address().port}/`;
}

/** Opens the page as a user. What the page logs as an error makes the test fail. */
export async function open(t, browser, site, stack, user, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1120, height: 720 }, ...options });
  const page = await context.newPage();
  page.errors = [];
  page.on('pageerror', (error) => page.errors.push(String(error)));
  page.on('console', (message) => {
    // The browser logs each refused handshake as an error. A test that cuts the network expects that.
    if (message.type() === 'error' && !/ERR_CONNECTION|WebSocket/.test(message.text()))
      page.errors.push(message.text());
  });
  page.setDefaultTimeout(20_000);
  await page.goto(`${site}?url=${encodeURIComponent(stack.url())}`);
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
