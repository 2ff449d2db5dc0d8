// The chat page, as people use it.
import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { plain } from '../stack.js';
import { go, isAccessible, launch, longestTask, open, say, start } from './page.js';

const texts = (page) => page.locator('#messages .bubble > :first-child').allTextContents();
const shows = (page, text) => page.locator('#messages').getByText(text, { exact: true }).waitFor();
const options = { timeout: 120_000 };

describe('the chat page', { concurrency: 1 }, () => {
  test('two people talk in a topic and directly, with unread marks and a history', options, async (t) => {
    const [stack, browser] = [await start(t), await launch(t)];
    const [ada, grace] = [await open(t, browser, stack, 'ada'), await open(t, browser, stack, 'grace')];
    await ada.locator('#about').getByText('2 here: you, grace', { exact: true }).waitFor();
    await grace.locator('#about').getByText('2 here: you, ada', { exact: true }).waitFor();
    await say(ada, 'hello');
    await shows(grace, 'hello');
    await say(grace, 'hello yourself');
    await shows(ada, 'hello yourself');
    await ada.locator('.mine.sent').waitFor();
    await go(grace, '@ada');
    for (const text of ['psst', 'are you there?']) await say(grace, text);
    const row = ada.locator('#list a', { hasText: 'grace' });
    await row.locator('.unread', { hasText: '2' }).waitFor();
    assert.equal(await ada.title(), '(2) Switchboard');
    await row.click();
    await shows(ada, 'are you there?');
    assert.deepEqual(await texts(ada), ['psst', 'are you there?']);
    assert.equal(await ada.title(), 'Switchboard');
    await say(ada, 'yes');
    await shows(grace, 'yes');
    // A new page of the same browser has everything, one's own direct messages included, and nothing is unread.
    await grace.locator('.mine.sent').nth(1).waitFor();
    await grace.reload();
    await shows(grace, 'yes');
    assert.deepEqual(await texts(grace), ['psst', 'are you there?', 'yes']);
    await grace.locator('#list a', { hasText: 'room.lobby' }).click();
    await shows(grace, 'hello yourself');
    assert.equal(await grace.locator('.unread').count(), 0);
    // Who leaves a topic does not hear it any more.
    await grace.getByRole('button', { name: 'Leave topic' }).click();
    await grace.locator('#list a', { hasText: 'room.lobby' }).waitFor({ state: 'detached' });
    await ada.locator('#list a', { hasText: 'room.lobby' }).click();
    await ada.locator('#about').getByText('1 here: you', { exact: true }).waitFor();
    await say(ada, 'is grace gone?');
    await ada.locator('.mine.sent', { hasText: 'is grace gone?' }).waitFor();
    await go(ada, '@grace');
    await say(ada, 'bye');
    await shows(grace, 'bye');
    assert.equal(await grace.locator('#list').getByText('is grace gone?').count(), 0);
    assert.deepEqual([...ada.errors, ...grace.errors], []);
  });

  test(
    'the stack stops and starts: the page comes back and sends what was written meanwhile, once',
    options,
    async (t) => {
      const folder = mkdtempSync(join(tmpdir(), 'switchboard-'));
      t.after(() => rmSync(folder, { recursive: true }));
      const [stack, browser] = [await start(t, ['--data-dir', folder]), await launch(t)];
      const ada = await open(t, browser, stack, 'ada');
      await go(ada, 'hall');
      await say(ada, 'older');
      await ada.locator('.mine.sent').waitFor();
      await ada.locator('#list a', { hasText: 'room.lobby' }).click();
      await say(ada, 'before');
      await ada.locator('.mine.sent').waitFor();
      await stack.stop();
      await ada.locator('#banner').getByText('Reconnecting').waitFor();
      for (const text of ['one', 'two']) await say(ada, text);
      await ada.locator('.mine.pending').nth(1).waitFor();
      const again = await start(t, ['--data-dir', folder], { port: stack.port });
      await ada.locator('.mine.sent').nth(2).waitFor();
      await ada.locator('#banner').waitFor({ state: 'hidden' });
      assert.deepEqual(await texts(ada), ['before', 'one', 'two']);
      // The note about the other topic, which keeps nothing, is no news.
      await go(ada, 'hall');
      await ada.locator('.note').getByText('You were disconnected').waitFor();
      assert.deepEqual(await ada.locator('#list .name').allTextContents(), ['room.lobby', 'hall']);
      const sender = await plain(t, again.url('?userId=ada'));
      const { messages } = await sender.ask({ type: 'history', topic: 'room.lobby' });
      assert.deepEqual(
        messages.map(({ data }) => data),
        ['two', 'one', 'before'],
      );
      assert.deepEqual(ada.errors, []);
    },
  );

  test('mistakes are told in words, and markup is text', options, async (t) => {
    const [stack, browser] = [await start(t), await launch(t)];
    const name = '<img src=x onerror=alert(1)>';
    const ada = await open(t, browser, stack, name);
    await say(ada, '<script>alert(2)</script> مرحبا 👩‍👩‍👧');
    await shows(ada, '<script>alert(2)</script> مرحبا 👩‍👩‍👧');
    await say(ada, 'x'.repeat(40_000));
    await ada.getByText(/Not sent: The message is too large: its frame has \d+ bytes/).waitFor();
    await ada.getByRole('button', { name: 'Discard' }).click();
    await ada.locator('.failed').waitFor({ state: 'detached' });
    await go(ada, 'INITIAL_CONNECTION');
    await ada
      .locator('#empty')
      .getByText(/reserved/)
      .waitFor();
    await ada.getByLabel('Topic, or @ and a name').fill('ž'.repeat(200));
    await ada.keyboard.press('Enter');
    await ada.getByText('A name has at most 256 bytes.').waitFor();
    await go(ada, `<b>${'long'.repeat(60)}</b>`);
    const wide = await ada.evaluate(() =>
      [...document.querySelectorAll('*')]
        .filter((it) => it.getBoundingClientRect().right > innerWidth + 1)
        .map((it) => it.outerHTML.slice(0, 200)),
    );
    assert.deepEqual(wide, []);
    assert.equal(await ada.locator('#list b, #messages script, #title b').count(), 0);
    assert.deepEqual(ada.errors, []);
  });

  test('a stack that forgets everything: what was written before the page is back is there', options, async (t) => {
    const [stack, browser] = [await start(t), await launch(t)];
    const [ada, grace] = [await open(t, browser, stack, 'ada'), await open(t, browser, stack, 'grace')];
    await say(ada, 'one');
    await shows(grace, 'one');
    await grace.context().setOffline(true);
    await stack.stop();
    await ada.locator('#banner').getByText('Reconnecting').waitFor();
    await start(t, [], { port: stack.port });
    await say(ada, 'two');
    await ada.locator('.mine.sent').nth(1).waitFor();
    await go(ada, '@grace');
    await say(ada, 'psst');
    await ada.locator('.mine.sent').waitFor();
    await grace.context().setOffline(false);
    await shows(grace, 'two');
    await grace.locator('.note').getByText('Something may be missing here').waitFor();
    await say(ada, 'are you there?');
    const row = grace.locator('#list a', { hasText: 'are you there?' });
    await row.locator('.unread', { hasText: '2' }).waitFor();
    await ada.locator('#list a', { hasText: 'room.lobby' }).click();
    await say(ada, 'three');
    await shows(grace, 'three');
    for (const page of [ada, grace]) assert.deepEqual(await texts(page), ['one', 'two', 'three']);
    await row.click();
    await shows(grace, 'are you there?');
    assert.deepEqual([await texts(grace), ada.errors, grace.errors], [['psst', 'are you there?'], [], []]);
  });

  test('a pattern shows what comes to its topics', options, async (t) => {
    const [stack, browser] = [await start(t), await launch(t)];
    const [ada, sender] = [await open(t, browser, stack, 'ada'), await plain(t, stack.url('?userId=grace'))];
    await go(ada, 'room.*');
    await ada.locator('#about').getByText('All topics that begin with “room.”').waitFor();
    await ada.locator('#empty').getByText('Nothing here yet.').waitFor();
    assert.equal(await ada.getByLabel('Message', { exact: true }).isVisible(), false);
    await sender.publish('room.7', 'seven');
    await sender.publish('room.8', 'eight');
    await sender.publish('room.8', 'eight again');
    await shows(ada, 'eight again');
    assert.deepEqual(await ada.locator('#messages .place').allTextContents(), ['room.7', 'room.8']);
    // The name is the way to the topic. A `#` in front of a name is how the page shows topics, and no part of the name.
    await ada.getByRole('link', { name: 'room.8', exact: true }).click();
    await ada.locator('#title').getByText('room.8', { exact: true }).waitFor();
    await say(ada, 'one of mine');
    await ada.locator('.mine.sent').waitFor();
    await ada.getByLabel('Topic, or @ and a name').fill('#room.*');
    await ada.keyboard.press('Enter');
    await shows(ada, 'one of mine');
    assert.deepEqual(
      await ada.locator('#messages .bubble > [dir]').allTextContents(),
      ['seven', 'eight', 'eight again', 'one of mine'],
    );
    await isAccessible(ada, 'pattern');
    assert.deepEqual(ada.errors, []);
  });

  test('a server that does not answer is named, until it does', options, async (t) => {
    const [stack, browser] = [await start(t), await launch(t)];
    // The page comes from one stack, and talks to another one that does not run yet.
    const other = await start(t);
    await other.stop();
    const page = await (await browser.newContext()).newPage();
    page.setDefaultTimeout(20_000);
    await page.goto(`${stack.site}?url=${encodeURIComponent(other.url())}`);
    await page.getByLabel('Your name').fill('ada');
    await page.keyboard.press('Enter');
    await page.locator('#banner').getByText(`${other.url()} does not answer. Is it running?`).waitFor();
    await say(page, 'early');
    await page.locator('.mine.pending').waitFor();
    await start(t, [], { port: other.port });
    await page.locator('.mine.sent').waitFor();
    await page.locator('#banner').waitFor({ state: 'hidden' });
  });

  test('somebody who is away, and a name that nobody has', options, async (t) => {
    const [stack, browser] = [await start(t), await launch(t)];
    const ada = await open(t, browser, stack, 'ada');
    await go(ada, '@grcae');
    await say(ada, 'are you there?');
    await ada.locator('.mine.sent').getByText('kept for later').waitFor();
    await ada.getByRole('button', { name: 'Remove' }).click();
    await ada.locator('#list a', { hasText: 'grcae' }).waitFor({ state: 'detached' });
    await go(ada, '@ada');
    await ada.locator('#about').getByText('Notes to yourself').waitFor();
    await say(ada, 'buy tea');
    await ada.locator('.mine.sent').waitFor();
    await ada.reload();
    await ada.locator('#list a', { hasText: 'buy tea' }).waitFor();
    assert.equal(await ada.locator('#list a', { hasText: 'grcae' }).count(), 0);
    // Who has written stays.
    const grace = await plain(t, stack.url('?userId=grace'));
    await grace.ask({ action: 'sendMessage', destinationUserId: 'ada', body: 'psst' });
    await ada.locator('#list a', { hasText: 'grace' }).click();
    await shows(ada, 'psst');
    assert.equal(await ada.getByRole('button', { name: 'Remove' }).count(), 0);
    assert.deepEqual(ada.errors, []);
  });

  test('what one tab ends, another tab of the same user does not bring back', options, async (t) => {
    const [stack, browser] = [await start(t), await launch(t)];
    const first = await open(t, browser, stack, 'ada');
    await go(first, 'room.tea');
    await go(first, 'room.cake');
    const second = await first.context().newPage();
    second.setDefaultTimeout(20_000);
    await second.goto(`${stack.site}?url=${encodeURIComponent(stack.url())}`);
    await second.getByLabel('Your name').fill('ada');
    await second.keyboard.press('Enter');
    await second.locator('#list a', { hasText: 'room.lobby' }).click();
    const tea = (page) => page.locator('#list a', { hasText: 'room.tea' });
    await tea(second).waitFor();
    await tea(first).click();
    await first.getByRole('button', { name: 'Leave topic' }).click();
    for (const page of [first, second]) await tea(page).waitFor({ state: 'detached' });
    // The other tab saves what it has, and both tabs know of it.
    await go(second, 'room.biscuits');
    await first.locator('#list a', { hasText: 'room.biscuits' }).waitFor();
    for (const page of [first, second]) assert.equal(await tea(page).count(), 0);
  });

  test('a server that is not Switchboard is named', options, async (t) => {
    const [{ site }, browser] = [await start(t), await launch(t)];
    const page = await (await browser.newContext()).newPage();
    // The server of the page itself answers HTTP, and no handshake. Waiting in full would take minutes.
    await page.addInitScript(() => (Math.random = () => 0));
    await page.goto(`${site}?url=${encodeURIComponent(site.replace('http', 'ws'))}`);
    await page.getByLabel('Your name').fill('ada');
    await page.keyboard.press('Enter');
    await page
      .locator('dialog')
      .getByText(/The server refused 20 connections in a row/)
      .waitFor();
    await page.getByRole('button', { name: 'Try again' }).waitFor();
  });

  test('a network that goes and comes back', options, async (t) => {
    const [stack, browser] = [await start(t), await launch(t)];
    const [ada, grace] = [await open(t, browser, stack, 'ada'), await open(t, browser, stack, 'grace')];
    await ada.context().setOffline(true);
    await say(grace, 'are you there?');
    await grace.locator('.mine.sent').waitFor();
    await ada.context().setOffline(false);
    await shows(ada, 'are you there?');
    assert.deepEqual(await texts(ada), ['are you there?']);
  });

  test('a tab that was frozen until its connection was cut', options, async (t) => {
    const [stack, browser] = [await start(t, ['--idle-timeout', '3s']), await launch(t)];
    const ada = await open(t, browser, stack, 'ada');
    const cdp = await ada.context().newCDPSession(ada);
    await cdp.send('Page.setWebLifecycleState', { state: 'frozen' });
    await stack.logs(/1001/);
    const grace = await plain(t, stack.url('?userId=grace'));
    await grace.publish('room.lobby', 'while you slept');
    await cdp.send('Page.setWebLifecycleState', { state: 'active' });
    await shows(ada, 'while you slept');
    assert.deepEqual([await texts(ada), ada.errors], [['while you slept'], []]);
  });

  test('a thousand messages do not hold the page up', options, async (t) => {
    const [stack, browser] = [await start(t), await launch(t)];
    const ada = await open(t, browser, stack, 'ada');
    await go(ada, 'hall');
    await ada.getByText('Live topic').waitFor();
    const sender = await plain(t, stack.url('?userId=2'));
    const longest = await longestTask(browser, ada, async () => {
      for (let count = 0; count < 1000; count += 50) {
        await Promise.all(Array.from({ length: 50 }, (_, index) => sender.publish('hall', `message ${count + index}`)));
      }
      await ada.waitForFunction(() => document.querySelectorAll('#messages .bubble').length === 300);
      await ada.locator('#messages').getByText('message 99', { exact: false }).last().waitFor();
    });
    assert.ok(longest < 200, `${longest} ms`);
    // Who reads further up is not moved, and older messages are there.
    await ada.getByRole('button', { name: 'Show older messages' }).click();
    await ada.waitForFunction(() => document.querySelectorAll('#messages .bubble').length > 300);
  });

  test('a keyboard is enough, and axe finds nothing', options, async (t) => {
    const [stack, browser] = [await start(t), await launch(t)];
    const grace = await plain(t, stack.url('?userId=grace'));
    await grace.publish('room.lobby', 'good morning');
    const context = await browser.newContext({ viewport: { width: 1120, height: 720 } });
    const page = await context.newPage();
    page.setDefaultTimeout(20_000);
    await page.goto(`${stack.site}?url=${encodeURIComponent(stack.url())}`);
    const check = (where) => isAccessible(page, where);
    await check('welcome');
    await page.keyboard.type('ada');
    await page.keyboard.press('Enter');
    await shows(page, 'good morning');
    await page.keyboard.type('hello');
    await page.keyboard.press('Enter');
    await page.locator('.mine.sent').waitFor();
    await grace.ask({ action: 'sendMessage', destinationUserId: 'ada', body: 'psst' });
    await page.locator('.unread').waitFor();
    await check('chat');
    await page.locator('#list a').first().focus();
    await page.keyboard.press('ArrowDown');
    await page.keyboard.press('ArrowUp');
    await page.keyboard.press('Enter');
    await shows(page, 'psst');
    await page.keyboard.type('yes?');
    await page.keyboard.press('Enter');
    await page.locator('.mine.sent').waitFor();
    await page.setViewportSize({ width: 390, height: 780 });
    await check('phone');
    await page.getByRole('button', { name: 'All conversations' }).press('Enter');
    await page.locator('#list a').first().waitFor();
    await check('list on a phone');
  });

  test('pictures', { ...options, skip: !process.env.SCREENSHOTS }, async (t) => {
    const folder = process.env.SCREENSHOTS;
    mkdirSync(folder, { recursive: true });
    const [stack, browser] = [await start(t), await launch(t)];
    const [grace, ada] = [await open(t, browser, stack, 'grace'), await open(t, browser, stack, 'ada')];
    const joan = await open(t, browser, stack, 'joan');
    for (const page of [grace, ada, joan]) await page.locator('#about').getByText('3 here').waitFor();
    for (const [page, text] of [
      [grace, 'Morning! The new exchange is wired up.'],
      [ada, 'Lovely. Did the cords arrive?'],
      [grace, 'Two dozen, all of them yellow ☎️'],
      [
        grace,
        'I labelled the jacks A to F, so that nobody has to guess which line is whose when three of them ring at once.',
      ],
      [ada, 'Perfect'],
    ]) {
      await say(page, text);
      for (const reader of [ada, grace]) await shows(reader, text);
    }
    await go(grace, '@ada');
    await say(grace, 'Are you coming to the tea at four?');
    await ada.locator('.unread').waitFor();
    for (const colorScheme of ['light', 'dark']) {
      await ada.emulateMedia({ colorScheme });
      await ada.setViewportSize({ width: 1120, height: 720 });
      await ada.screenshot({ path: join(folder, `desktop-${colorScheme}.png`) });
      await ada.setViewportSize({ width: 390, height: 780 });
      await ada.screenshot({ path: join(folder, `phone-${colorScheme}.png`) });
    }
  });
});
