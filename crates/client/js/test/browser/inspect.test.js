// The inspector of the local stack, as developers use it.
import assert from 'node:assert/strict';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { plain } from '../stack.js';
import { go, isAccessible, launch, longestTask, open, say, start } from './page.js';

const options = { timeout: 120_000 };

/** Opens the inspector. What the page logs as an error makes the test fail. */
async function inspect(t, browser, stack, more = {}) {
  const context = await browser.newContext({ viewport: { width: 1240, height: 820 }, ...more });
  const page = await context.newPage();
  page.errors = [];
  page.on('pageerror', (error) => page.errors.push(String(error)));
  page.on('console', (message) => message.type() === 'error' && page.errors.push(message.text()));
  page.setDefaultTimeout(20_000);
  await page.goto(`${stack.site}inspect`);
  await page.locator('#state').getByText('Live', { exact: true }).waitFor();
  return page;
}

const story = (page, hasText) =>
  page
    .locator('.story')
    .filter({ has: page.locator('summary', { hasText }) })
    .first();
const summary = (page, hasText) => story(page, hasText).locator('> summary');

/** Unfolds what is folded. A row that comes meanwhile moves the others, so this asks again after each click. */
async function unfoldAll(page, what) {
  const folded = page.locator(`${what}:not([open]) > summary`).filter({ visible: true });
  while (await folded.count()) await folded.first().click();
}

describe('the inspector', { concurrency: 1 }, () => {
  test('a frame unfolds into its story', options, async (t) => {
    const [stack, browser] = [await start(t), await launch(t)];
    const page = await inspect(t, browser, stack);
    await page.getByText('Nothing has happened since you opened this page.').waitFor();
    const [ada, grace] = [await plain(t, stack.url('?userId=ada')), await plain(t, stack.url('?userId=grace'))];
    await ada.ask({ action: 'sendMessage', destinationUserId: 'grace', body: 'psst' });
    await summary(page, 'sendMessage').click();
    const one = story(page, 'sendMessage');
    await one.locator('.invocation > header').getByText('cold start').waitFor();
    await one
      .locator('.invocation > header')
      .getByText(/environment \d+, process \d+, init .* ms/)
      .waitFor();
    for (const step of [
      /^GetItem.*connections.*unit/,
      /^Query.*topics.*unit/,
      /^POST userId=grace.*200.*psst/,
      /^POST userId=ada.*200.*ack/,
      /^Response.*200/,
      /^INFO.*served/,
    ])
      await one.locator('.step .text').filter({ hasText: step }).waitFor();
    // Everything is in the order in which it began, and a step unfolds as well.
    const offsets = (await one.locator('.step .at').allTextContents()).map(Number);
    assert.deepEqual(
      offsets,
      offsets.toSorted((a, b) => a - b),
    );
    await one.locator('.step summary').filter({ hasText: 'Query' }).click();
    await one.locator('.step pre').filter({ hasText: '"TableName": "switchboard-dev-topics"' }).waitFor();
    await one
      .locator('.step summary')
      .filter({ hasText: /^.*Event/ })
      .first()
      .click();
    await one.locator('.step pre').filter({ hasText: '"routeKey": "sendMessage"' }).waitFor();
    // The second one finds the environment warm.
    await ada.ask({ action: 'sendMessage', destinationUserId: 'grace', body: 'again' });
    await summary(page, 'again').click();
    await story(page, 'again').locator('.invocation > header').getByText('warm').waitFor();
    // The handshakes, and the ends of connections.
    assert.equal(await page.locator('.story .kind', { hasText: 'handshake' }).count(), 2);
    grace.socket.close(1000, 'bye');
    await summary(page, 'Closed with 1000').getByText('bye').waitFor();
    await page.locator('#count').getByText('1', { exact: true }).waitFor();
    // The picture: environments, items, rates.
    await page.locator('#functions').getByText('sendMessage').waitFor();
    assert.equal(await page.locator('#functions li', { hasText: 'sendMessage' }).locator('.box').count(), 1);
    await page
      .locator('#tables li', { hasText: 'connections' })
      .getByText(/[12] items?/)
      .waitFor();
    assert.deepEqual(page.errors, []);
  });

  test('an event of a backend is a story of the stream', options, async (t) => {
    const [stack, browser] = [await start(t), await launch(t)];
    const page = await inspect(t, browser, stack);
    const ada = await plain(t, stack.url('?userId=ada'));
    await ada.ask({ type: 'subscribe', topic: 'general' });
    const item = { topic: { S: 'general' }, id: { S: '1' }, data: { S: 'deploy done' } };
    const put = await fetch(`http://localhost:${stack.dynamodb}`, {
      method: 'POST',
      headers: {
        'content-type': 'application/x-amz-json-1.0',
        'x-amz-target': 'DynamoDB_20120810.PutItem',
        authorization:
          'AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/dynamodb/aws4_request, SignedHeaders=host, Signature=0',
        'x-amz-date': '20260101T000000Z',
      },
      body: JSON.stringify({ TableName: 'switchboard-dev-events', Item: item }),
    });
    assert.equal(put.status, 200);
    await summary(page, 'switchboard-dev-events from outside').waitFor();
    await summary(page, '1 record of switchboard-dev-events').click();
    const one = story(page, '1 record of switchboard-dev-events');
    await one
      .locator('.step .text')
      .filter({ hasText: /^POST userId=ada 200.*deploy done/ })
      .waitFor();
    assert.deepEqual(page.errors, []);
  });

  test('filters, a pause and a clear', options, async (t) => {
    const [stack, browser] = [await start(t), await launch(t)];
    const page = await inspect(t, browser, stack);
    const [ada, grace] = [await plain(t, stack.url('?userId=ada')), await plain(t, stack.url('?userId=grace'))];
    // Nobody subscribes here: the presence function would add a row about it at some time.
    await grace.ask({ type: 'ping' });
    await ada.ask({ action: 'sendMessage', destinationUserId: 'nobody', body: 'x' });
    const refused = await fetch(`http://localhost:${stack.port}/dev`);
    assert.equal(refused.status, 426);
    await summary(page, 'Refused with 426').waitFor();
    const rows = page.locator('#stories > li');
    await summary(page, 'sendMessage').click();
    await story(page, 'sendMessage').locator('.invocation').waitFor();
    await page.getByLabel('Errors only').check();
    await page.locator('#shown').getByText('1 row of these').waitFor();
    assert.match(await rows.innerText(), /Refused with 426/);
    await page.getByLabel('Errors only').uncheck();
    // What was unfolded is so when it comes back.
    await story(page, 'sendMessage').locator('.invocation').waitFor();
    await summary(page, 'sendMessage').click();
    await story(page, 'sendMessage').locator('.invocation').waitFor({ state: 'detached' });
    // A row of the picture is a filter, too.
    await page.locator('#functions button', { hasText: 'sendMessage' }).click();
    await page.locator('#shown').getByText('1 row of these').waitFor();
    await page.locator('#functions button', { hasText: 'sendMessage' }).click();
    await page.locator('#by-function').selectOption('default');
    await page.locator('#shown').getByText('1 row of these').waitFor();
    await page.locator('#by-function').selectOption('');
    await page.locator('#by-connection').selectOption({ label: 'userId=grace' });
    await page.locator('#shown').getByText('2 rows of these').waitFor();
    await page.locator('#by-connection').selectOption('');
    await page.locator('#shown').getByText('5 rows', { exact: true }).waitFor();

    await page.getByRole('button', { name: 'Pause' }).click();
    await page.locator('#state').getByText('Paused').waitFor();
    for (let count = 0; count < 3; count += 1) await grace.ask({ type: 'ping' });
    await page.getByRole('button', { name: '3 new rows: go on' }).waitFor();
    assert.equal(await rows.count(), 5);
    await page.getByRole('button', { name: '3 new rows: go on' }).click();
    await page.locator('#shown').getByText('8 rows', { exact: true }).waitFor();
    await page.getByRole('button', { name: 'Clear' }).click();
    await page.getByText('Nothing has happened since').waitFor();
    assert.deepEqual(page.errors, []);
  });

  test('an event is copied and run again, and a pasted one, too', options, async (t) => {
    const [stack, browser] = [await start(t), await launch(t)];
    const page = await inspect(t, browser, stack, { permissions: ['clipboard-read', 'clipboard-write'] });
    const [ada, grace] = [await plain(t, stack.url('?userId=ada')), await plain(t, stack.url('?userId=grace'))];
    const heard = [];
    grace.socket.on('message', (text) => heard.push(JSON.parse(text).body));
    // Without an id, each run is a new message.
    ada.socket.send(JSON.stringify({ action: 'sendMessage', destinationUserId: 'grace', body: 1 }));
    await summary(page, 'sendMessage').click();
    // The button says so for a moment only, so the page looks for it from before the click on.
    const copied = page.getByRole('button', { name: 'Copied' }).waitFor();
    await page.getByRole('button', { name: 'Copy event' }).click();
    await copied;
    const event = await page.evaluate(() => navigator.clipboard.readText());
    assert.equal(JSON.parse(event).requestContext.routeKey, 'sendMessage');
    await page.getByRole('button', { name: 'Run again' }).click();
    await page.getByRole('dialog').getByRole('button', { name: 'Run' }).click();
    // The page opens the new story.
    const one = story(page, 'an event that you ran');
    await one
      .locator('.step .text')
      .filter({ hasText: /^POST userId=grace 200/ })
      .waitFor();
    assert.deepEqual(heard, [1, 1]);
    await page.getByRole('button', { name: 'Run an event' }).click();
    const dialog = page.getByRole('dialog');
    await dialog.getByLabel('Function').selectOption('sendMessage');
    await dialog.getByLabel('Event').fill('{');
    await dialog.getByRole('button', { name: 'Run' }).click();
    await dialog.getByText(/The event is not JSON/).waitFor();
    await dialog.getByLabel('Event').fill(event.replace('\\"body\\":1', '\\"body\\":2'));
    await dialog.getByRole('button', { name: 'Run' }).click();
    await page.locator('.story .kind.run').nth(1).waitFor();
    await page
      .locator('.story[open] .step .text')
      .filter({ hasText: /^POST userId=grace 200.*2/ })
      .waitFor();
    assert.deepEqual(heard, [1, 1, 2]);
    // An event that is none fails, and the row says so.
    await page.getByRole('button', { name: 'Run an event' }).click();
    await dialog.getByLabel('Event').fill('{"no": "event"}');
    await dialog.getByRole('button', { name: 'Run' }).click();
    await page.locator('.story.failed[open] .mistake').waitFor();
    // The refused call is the only one in the log of the browser.
    assert.deepEqual(
      page.errors.filter((text) => !/400/.test(text)),
      [],
    );
  });

  test('a frame is sent as a client, and a connection is dropped', options, async (t) => {
    const [stack, browser] = [await start(t), await launch(t)];
    const page = await inspect(t, browser, stack);
    const ada = await plain(t, stack.url('?userId=ada'));
    const heard = new Promise((resolve) => ada.socket.once('message', (text) => resolve(JSON.parse(text))));
    const closed = new Promise((resolve) => ada.socket.once('close', resolve));
    await page.locator('#connections button', { hasText: 'userId=ada' }).click();
    await page.getByRole('button', { name: 'Send a frame' }).click();
    await page.getByLabel('Text').fill('{"type":"ping","id":"p1"}');
    await page.getByRole('dialog').getByRole('button', { name: 'Send' }).click();
    assert.deepEqual(await heard, { type: 'pong', id: 'p1' });
    await summary(page, '"p1"').waitFor();
    await page.getByRole('button', { name: 'Drop' }).click();
    assert.equal(await closed, 1001);
    await summary(page, 'Closed with 1001').waitFor();
    await page.locator('#no-connections').waitFor();
    await page.getByRole('button', { name: 'Drop' }).click();
    await page.getByRole('alert').getByText('The connection is not open.').waitFor();
    assert.deepEqual(
      page.errors.filter((text) => !/409/.test(text)),
      [],
    );
  });

  test('script in names, topics and bodies is text, and long ones do not break the layout', options, async (t) => {
    const [stack, browser] = [await start(t), await launch(t)];
    const page = await inspect(t, browser, stack);
    const script = '<img src=x onerror="document.title=\'pwned\'">';
    const ada = await plain(t, stack.url(`?userId=${encodeURIComponent(script)}`));
    await ada.ask({ type: 'subscribe', topic: `room.${script}` });
    await ada.publish(`room.${script}`, `</script>${script}`);
    await ada.publish('long', `${'x'.repeat(20_000)} مرحبا 👩‍👩‍👧`);
    ada.socket.send(script);
    // Each row has the name in it, so a row that is not there yet would be taken for another one.
    const frames = page.locator('.story', { has: page.locator('.kind.frame') });
    await frames.nth(3).waitFor();
    await unfoldAll(page, '.story');
    await frames.filter({ hasText: 'Response' }).nth(3).waitFor();
    await unfoldAll(page, '.step');
    await page.locator('pre:visible', { hasText: '</script>' }).first().waitFor();
    // A text that was cut says so.
    await page
      .getByText(/This is the beginning. The whole has \d+\.\d KB/)
      .filter({ visible: true })
      .first()
      .waitFor();
    for (const width of [1240, 390]) {
      await page.setViewportSize({ width, height: 800 });
      const wide = await page.evaluate(() =>
        [...document.querySelectorAll('body *')]
          .filter((it) => !it.closest('svg, .hidden') && it.getBoundingClientRect().right > innerWidth + 1)
          .map((it) => it.outerHTML.slice(0, 200)),
      );
      assert.deepEqual(wide, [], `${width}`);
    }
    assert.equal(await page.locator('#stories img, #stories script, aside img').count(), 0);
    assert.notEqual(await page.title(), 'pwned');
    assert.deepEqual(page.errors, []);
  });

  test('a keyboard is enough, and axe finds nothing', options, async (t) => {
    const [stack, browser] = [await start(t), await launch(t)];
    const page = await inspect(t, browser, stack);
    const check = (where) => isAccessible(page, where);
    await check('empty');
    const ada = await plain(t, stack.url('?userId=ada'));
    await ada.ask({ action: 'sendMessage', destinationUserId: 'ada', body: 'psst' });
    await fetch(`http://localhost:${stack.port}/dev`);
    await summary(page, 'Refused with 426').waitFor();
    // Tab reaches the list, arrows go along it, Enter unfolds a row and its steps.
    const focused = () =>
      page.evaluate(() => (document.activeElement.matches('summary, button') ? document.activeElement.innerText : ''));
    for (let count = 0; count < 40 && !/Refused/.test(await focused()); count += 1) await page.keyboard.press('Tab');
    await page.keyboard.press('ArrowDown');
    assert.match(await focused(), /sendMessage/);
    await page.keyboard.press('Enter');
    await page.locator('.story[open] .step').first().waitFor();
    await page.keyboard.press('ArrowDown');
    await page.keyboard.press('Enter');
    await page.locator('.step[open] pre').waitFor();
    await check('story');
    // New rows do not move what has the focus.
    await ada.ask({ type: 'ping' });
    await summary(page, '"ping"').waitFor();
    assert.match(await focused(), /Event/);
    for (let count = 0; count < 60 && !/^Run an event/.test(await focused()); count += 1)
      await page.keyboard.press('Shift+Tab');
    await page.keyboard.press('Enter');
    await page.getByRole('dialog').getByLabel('Event').waitFor();
    await check('dialog');
    await page.keyboard.press('Escape');
    await page.getByRole('dialog').waitFor({ state: 'hidden' });
    await page.setViewportSize({ width: 390, height: 800 });
    await check('phone');
    assert.deepEqual(page.errors, []);
  });

  test('a stack that stops and starts', options, async (t) => {
    const [stack, browser] = [await start(t), await launch(t)];
    const page = await inspect(t, browser, stack);
    await plain(t, stack.url('?userId=ada'));
    await summary(page, 'Accepted').waitFor();
    await stack.stop();
    await page.locator('#state').getByText('The stack does not answer').waitFor();
    const again = await start(t, [], { webPort: new URL(stack.site).port });
    await page.locator('#state').getByText('Live', { exact: true }).waitFor();
    await page.getByText('Nothing has happened since').waitFor();
    await plain(t, again.url('?userId=grace'));
    await summary(page, 'userId=grace').waitFor();
  });

  test('five hundred frames do not hold the page up', options, async (t) => {
    const [stack, browser] = [await start(t, ['--env', 'MAX_FRAMES_PER_SECOND=0']), await launch(t)];
    const page = await inspect(t, browser, stack);
    const ada = await plain(t, stack.url('?userId=ada'));
    const longest = await longestTask(browser, page, async () => {
      for (let count = 0; count < 600; count += 20)
        await Promise.all(Array.from({ length: 20 }, () => ada.publish('hall', 'x')));
      await page.locator('#shown').getByText('200 rows').waitFor();
      await page
        .locator('#functions li', { hasText: 'default' })
        .getByText(/\d+\/s/)
        .waitFor();
    });
    assert.ok(longest < 200, `${longest} ms`);
  });

  test('pictures', { ...options, skip: !process.env.SCREENSHOTS }, async (t) => {
    const folder = process.env.SCREENSHOTS;
    mkdirSync(folder, { recursive: true });
    const [stack, browser] = [await start(t), await launch(t)];
    const page = await inspect(t, browser, stack, { viewport: { width: 1120, height: 720 } });
    const [grace, ada] = [await open(t, browser, stack, 'grace'), await open(t, browser, stack, 'ada')];
    for (const [who, text] of [
      [grace, 'The new exchange is wired up.'],
      [ada, 'Lovely.'],
      [grace, 'Two dozen cords.'],
    ]) {
      await say(who, text);
      for (const reader of [ada, grace]) await reader.locator('#messages').getByText(text, { exact: true }).waitFor();
    }
    await go(grace, '@ada');
    await say(grace, 'Are you coming to the tea at four?');
    await ada.locator('.unread').waitFor();
    for (const [name, size] of [
      ['desktop', { width: 1120, height: 720 }],
      ['phone', { width: 390, height: 780 }],
    ]) {
      await page.setViewportSize(size);
      // A page that comes later sees what is kept.
      await page.reload();
      await summary(page, 'sendMessage').click();
      await story(page, 'sendMessage').locator('.step').last().waitFor();
      await page.locator('#functions').getByText('0.').first().waitFor({ state: 'attached' });
      // What the function did matters more than the frame, which the row shows.
      await story(page, 'sendMessage').evaluate((it) => (it.querySelector('.body').hidden = true));
      for (const colorScheme of ['light', 'dark']) {
        await page.emulateMedia({ colorScheme });
        await page.screenshot({ path: join(folder, `inspector-${name}-${colorScheme}.png`) });
      }
    }
  });
});
