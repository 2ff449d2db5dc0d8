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
