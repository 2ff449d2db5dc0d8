// Two tabs of a browser that share one connection.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { network, plain, start } from '../stack.js';
import { launch } from './page.js';

const options = { timeout: 120_000 };

/** Opens a tab with a shared client, which keeps what it hears. */
async function tab(context, stack, url, { last = 0 } = {}) {
  const page = await context.newPage();
  page.errors = [];
  page.on('pageerror', (error) => page.errors.push(String(error)));
  page.setDefaultTimeout(20_000);
  await page.goto(`${stack.site}package.json`);
  await page.evaluate(
    async ([url, last]) => {
      const { connectShared } = await import('/shared.js');
      globalThis.client = connectShared(url, { name: 'test', maxDelay: 200 });
      globalThis.heard = { 'room.7': [], hall: [], '@me': [] };
      globalThis.events = [];
      for (const name of ['connecting', 'connected', 'recovered', 'gap', 'error', 'closed'])
        client.on(name, (event) => events.push({ name, ...event }));
      const listen = (name, range) => client.topic(name).subscribe((it) => heard[name].push(it.data), range).ready;
      const ready = [listen('room.7', last ? { last } : {}), listen('hall'), listen('@me')];
      globalThis.ready = await Promise.all(ready);
    },
    [url, last],
  );
  return Object.assign(page, {
    until: (topic, count) =>
      page.waitForFunction(([topic, count]) => heard[topic].length >= count, [topic, count]),
    heard: () => page.evaluate(() => heard),
    events: (name) => page.evaluate((name) => events.filter((event) => event.name === name), name),
  });
}

test('two tabs share a connection, and one takes over when the other is closed', options, async (t) => {
  const [stack, browser] = [await start(t, ['--web', 'crates/client/js', '--web-port', '0']), await launch(t)];
  const net = await network(t, stack);
  const sender = await plain(t, stack.url('?userId=1'));
  const context = await browser.newContext();
  const first = await tab(context, stack, net.url('?userId=2'));
  await sender.publish('room.7', 'a');
  const second = await tab(context, stack, net.url('?userId=2'), { last: 10 });
  assert.equal(net.connections, 1);
  await sender.publish('room.7', 'b');
  await sender.publish('hall', 'b');
  await sender.ask({ action: 'sendMessage', destinationUserId: '2', body: 'b' });
  for (const page of [first, second]) for (const topic of ['hall', '@me']) await page.until(topic, 1);
  for (const page of [first, second]) {
    await page.until('room.7', 2);
    assert.deepEqual(await page.heard(), { 'room.7': ['a', 'b'], hall: ['b'], '@me': ['b'] });
  }
  // Both publish through the same connection, and both hear it.
  const publish = (page, topic, text) =>
    page.evaluate(([topic, text]) => client.topic(topic).publish(text), [topic, text]);
  assert.equal((await publish(second, 'room.7', 'c')).seq, 3);
  assert.equal((await publish(first, 'room.7', 'd')).seq, 4);
  const page = await second.evaluate(() => client.topic('room.7').history({ limit: 2 }));
  assert.deepEqual(page.messages.map(({ data }) => data), ['d', 'c']);
  const refused = second.evaluate(() => client.topic('@9').subscribe(() => {}).ready.catch(({ code }) => code));
  assert.equal(await refused, 'forbidden_topic');
  for (const page of [first, second]) await page.until('room.7', 4);

  // The tab with the connection is closed while messages come, and while the other one sends.
  const waiting = second.evaluate(async () => {
    const acks = [];
    for (let number = 0; number < 20; number += 1) acks.push((await client.topic('room.7').publish(`e${number}`)).seq);
    return acks;
  });
  await second.until('room.7', 7);
  net.isDown = true;
  await first.close();
  for (const text of ['x', 'y', 'z']) await sender.publish('room.7', text);
  net.isDown = false;
  const acks = await waiting;
  assert.equal(new Set(acks).size, 20);
  await sender.publish('room.7', 'end');
  await second.until('room.7', 28);
  const { messages } = await sender.ask({ type: 'history', topic: 'room.7' });
  // A message that was sent again has cost a number.
  const all = messages.filter(({ hole }) => !hole).map(({ data }) => data).reverse();
  assert.deepEqual([all.length, (await second.heard())['room.7']], [28, all]);
  assert.equal(net.connections, 2);
  // What may have been missed is told, as after a reconnect.
  const recovered = await second.events('recovered');
  assert.deepEqual(recovered.map(({ topic }) => topic).sort(), ['@me', 'room.7']);
  assert.deepEqual((await second.events('gap')).map(({ topic, reason }) => [topic, reason]), [['hall', 'no_history']]);
  await sender.publish('hall', 'f');
  await second.until('hall', 2);

  // A network that goes and comes back is no end. A further tab, and the end of its client, change nothing for the others.
  net.cut();
  await sender.publish('room.7', 'g');
  await second.until('room.7', 29);
  const third = await tab(context, stack, net.url('?userId=2'));
  // What the closed client leaves undone fails there, and nowhere else.
  net.isDeaf = true;
  net.lost = 0;
  const others = third.evaluate(() => client.topic('room.7').publish('other').then(({ seq }) => seq > 0));
  await net.until(() => net.lost > 0);
  const undone = await second.evaluate(() => {
    const post = client.topic('room.7').publish('undone');
    client.close();
    return post.catch(({ code }) => code);
  });
  net.isDeaf = false;
  assert.deepEqual([undone, await others], ['closed', true]);
  await third.waitForFunction(() => events.some(({ name }) => name === 'recovered'));
  await sender.publish('room.7', 'h');
  await third.waitForFunction(() => heard['room.7'].includes('h'));
  const last = (await third.heard())['room.7'].filter((text) => text !== 'undone');
  assert.deepEqual(last, ['other', 'h']);
  assert.deepEqual(await second.evaluate(() => [client.state, events.at(-1).code]), ['closed', 'closed']);
  assert.deepEqual([first.errors, second.errors, third.errors], [[], [], []]);
});

test('who is here is known in every tab, and the last word of all tabs counts', options, async (t) => {
  const [stack, browser] = [await start(t, ['--web', 'crates/client/js', '--web-port', '0']), await launch(t)];
  const net = await network(t, stack);
  const other = await plain(t, stack.url('?userId=1'));
  const context = await browser.newContext();
  const tabs = [];
  /** Opens a tab that watches the room, and says something. */
  async function watching(data) {
    const page = await tab(context, stack, net.url('?userId=2'));
    tabs.push(page);
    await page.evaluate(async (data) => {
      const { presence } = await import('/presence.js');
      globalThis.told = [];
      globalThis.watch = (name, options) => presence(client.topic(name), (event) => told.push(event), options);
      globalThis.here = watch('room.7', { data });
      await here.ready;
    }, data);
    return Object.assign(page, {
      sees: (expected) =>
        page.waitForFunction(
          (expected) => here.isCurrent && JSON.stringify([...(told.at(-1)?.users ?? [])].sort()) === expected,
          JSON.stringify(Object.entries(expected)),
        ),
      set: (data) => page.evaluate((data) => here.set(data), data),
    });
  }
  const all = (expected) => Promise.all(tabs.map((page) => page.sees(expected)));
  const words = async () => (await other.ask({ type: 'presence', topic: 'room.7' })).data;

  // All tabs are one member, because they have one connection.
  const first = await watching('first');
  await all({ 2: 'first' });
  const second = await watching('second');
  await all({ 2: 'second' });
  await first.set('third');
  await all({ 2: 'third' });
  await other.ask({ type: 'subscribe', topic: 'room.7', data: 'hi' });
  await all({ 1: 'hi', 2: 'third' });
  assert.equal(net.connections, 1);
  for (const page of tabs) {
    const joined = await page.evaluate(() => told.flatMap(({ joined }) => joined));
    assert.deepEqual(joined, ['2', '1']);
  }
  // The next connection says the last word again, and none before it.
  const count = await first.evaluate(() => told.length);
  net.cut();
  await first.waitForFunction((count) => told.slice(count).some(({ isCurrent }) => !isCurrent), count);
  await all({ 1: 'hi', 2: 'third' });
  assert.deepEqual(await words(), { 1: 'hi', 2: 'third' });
  assert.deepEqual(await first.evaluate((count) => told.slice(count).flatMap((it) => it.changed), count), []);

  // A tab that takes over says the last word, too. It asks the tabs in any order, and each of them says when it spoke.
  const third = await watching('fourth');
  await all({ 1: 'hi', 2: 'fourth' });
  await second.set('fifth');
  await all({ 1: 'hi', 2: 'fifth' });
  tabs.shift();
  const before = await third.evaluate(() => told.length);
  await first.close();
  await third.waitForFunction((before) => told.slice(before).some(({ isCurrent }) => !isCurrent), before);
  await all({ 1: 'hi', 2: 'fifth' });
  assert.deepEqual(await words(), { 1: 'hi', 2: 'fifth' });
  // A tab takes its word back, so the word of the other tab counts.
  await second.evaluate(() => here.set());
  await all({ 1: 'hi', 2: 'fourth' });
  await third.evaluate(() => here.stop());
  tabs.pop();
  await all({ 1: 'hi', 2: undefined });

  // What the server refuses is told to the tab that asked, and messages come all the same.
  const refused = await second.evaluate(async () => {
    const codes = [];
    const code = (error) => codes.push(error.code);
    await watch('hall').ready.catch(code);
    await here.set('x'.repeat(2000)).catch(code);
    await client.topic('hall').publish('hello');
    return codes;
  });
  assert.deepEqual(refused, ['no_presence', 'invalid_field']);
  for (const page of [second, third]) await page.until('hall', 1);
  await second.evaluate(() => client.close());
  await second.waitForFunction(() => !told.at(-1).isCurrent);
  // Another tab has the connection now, and does not say what the closed client said.
  await third.evaluate(() => (here = watch('room.7')).ready);
  tabs.splice(0, 1, third);
  await all({ 1: 'hi', 2: undefined });
  assert.deepEqual([second.errors, third.errors], [[], []]);
});
