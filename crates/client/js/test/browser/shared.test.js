// Tabs of a browser that share one connection.
import assert from 'node:assert/strict';
import { generateKeyPairSync, sign } from 'node:crypto';
import { test } from 'node:test';
import { network, plain, soon, start } from '../stack.js';
import { launch } from './page.js';

const options = { timeout: 120_000 };

/** Opens an empty tab at the site of the modules. */
async function empty(context, stack) {
  const page = await context.newPage();
  page.errors = [];
  page.on('pageerror', (error) => page.errors.push(String(error)));
  page.setDefaultTimeout(20_000);
  await page.goto(`${stack.site}package.json`);
  return page;
}

/** Opens a tab with a shared client, which keeps what it hears. The client of `token` asks the binding of this name. */
async function tab(context, stack, url, { last = 0, topics = ['room.7', 'hall', '@me'] } = {}) {
  const page = await empty(context, stack);
  await page.evaluate(
    async ([url, last, topics]) => {
      const { connectShared } = await import('/shared.js');
      /** Frames that contain this text are lost. */
      globalThis.lose = undefined;
      class Lossy extends WebSocket {
        send(text) {
          if (!text.includes(lose)) super.send(text);
        }
      }
      const token = globalThis.freshToken && (() => freshToken());
      globalThis.client = connectShared(url, { name: 'test', maxDelay: 200, token, WebSocket: Lossy });
      globalThis.heard = Object.fromEntries(topics.map((topic) => [topic, []]));
      globalThis.events = [];
      for (const name of ['connecting', 'connected', 'recovered', 'gap', 'error', 'closed'])
        client.on(name, (event) => events.push({ name, ...event }));
      globalThis.listen = (name, range) => {
        heard[name] ??= [];
        const subscription = client.topic(name).subscribe((it) => heard[name].push(it.data), range);
        (globalThis.subscriptions ??= []).push(subscription);
        return subscription.ready;
      };
      const ready = topics.map((name) => listen(name, last && name === 'room.7' ? { last } : {}));
      globalThis.ready = await Promise.all(ready);
    },
    [url, last, topics],
  );
  return Object.assign(page, {
    until: (topic, count) =>
      page.waitForFunction(([topic, count]) => heard[topic].length >= count, [topic, count]),
    heard: () => page.evaluate(() => heard),
    events: (name) => page.evaluate((name) => events.filter((event) => event.name === name), name),
    told: (name, topic) =>
      page.waitForFunction(([name, topic]) => events.some((it) => it.name === name && it.topic === topic), [name, topic]),
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

test('tabs that ask for different positions at once get what each of them asked for', options, async (t) => {
  const [stack, browser] = [await start(t, ['--web', 'crates/client/js', '--web-port', '0']), await launch(t)];
  const net = await network(t, stack);
  const sender = await plain(t, stack.url('?userId=1'));
  const { epoch } = await sender.publish('room.7', 1);
  for (const number of [2, 3, 4, 5, 6]) await sender.publish('room.7', number);
  const context = await browser.newContext();
  net.isDown = true;
  const tabs = [];
  // The last position is newer than all messages, as if the server had lost some.
  for (const seq of [3, 1, 5, 100]) {
    const page = await tab(context, stack, net.url('?userId=2'), { topics: [] });
    // The tab with the connection counts what the others ask for.
    if (!tabs.length)
      await page.evaluate(() => {
        globalThis.count = 0;
        new BroadcastChannel('switchboard test').onmessage = ({ data }) => (count += data.op === 'subscribe');
      });
    await page.waitForFunction(() => client.state === 'connecting' && events.length);
    await page.evaluate((after) => void (globalThis.result = listen('room.7', { after })), { epoch, seq });
    tabs.push(page);
    await tabs[0].waitForFunction((expected) => count === expected, tabs.length - 1);
  }
  net.isDown = false;
  const results = await Promise.all(tabs.map((page) => page.evaluate(() => result)));
  assert.deepEqual(results, [true, true, true, false].map((recovered) => ({ history: true, recovered })));
  await sender.publish('room.7', 7);
  for (const page of tabs) await page.waitForFunction(() => heard['room.7'].includes(7));
  const heard = await Promise.all(tabs.map((page) => page.evaluate(() => heard['room.7'])));
  assert.deepEqual(heard, [[4, 5, 6, 7], [2, 3, 4, 5, 6, 7], [6, 7], [7]]);
});

test('each tab hears that the server has ended its subscription', options, async (t) => {
  const { publicKey, privateKey } = generateKeyPairSync('ed25519');
  const keys = JSON.stringify({ keys: [publicKey.export({ format: 'jwk' })] });
  const rules = JSON.stringify([{ topic: 'room.*', history: { hours: 24 }, subscribe: 'granted' }]);
  const env = ['IDENTITY_MODE=verified', `TOKEN_KEYS=${keys}`, `TOPIC_RULES=${rules}`].flatMap((it) => ['--env', it]);
  const [stack, browser] = [await start(t, ['--web', 'crates/client/js', '--web-port', '0', ...env]), await launch(t)];
  const net = await network(t, stack);
  const context = await browser.newContext();
  let granted = ['room.7', 'room.8'];
  await context.exposeBinding('freshToken', () => {
    const claims = { sub: '2', exp: Math.floor(Date.now() / 1000) + 300, topics: { subscribe: granted } };
    const parts = [{ alg: 'EdDSA' }, claims].map((part) => Buffer.from(JSON.stringify(part)).toString('base64url'));
    return `${parts.join('.')}.${sign(null, Buffer.from(parts.join('.')), privateKey).toString('base64url')}`;
  });
  const topics = ['room.7', 'room.8'];
  const tabs = [];
  for (const _ of topics) tabs.push(await tab(context, stack, net.url(), { topics }));
  // The next token grants less. So the next connection is refused one of the topics.
  granted = ['room.8'];
  net.cut();
  for (const page of tabs) {
    await page.told('recovered', 'room.8');
    await page.told('error', 'room.7');
    const errors = await page.events('error');
    assert.deepEqual(errors.map(({ topic }) => topic), ['room.7']);
  }
  // Asking again later is no different from asking for the first time.
  granted = ['room.7', 'room.8'];
  net.cut();
  for (const page of tabs) await page.waitForFunction(() => events.filter(({ name }) => name === 'connected').length > 2);
  for (const page of tabs) await page.evaluate(() => listen('room.7'));
  await tabs[1].evaluate(() => client.topic('room.7').publish('hi'));
  for (const page of tabs) await page.until('room.7', 1);
  for (const page of tabs) assert.deepEqual((await page.heard())['room.7'], ['hi']);
});

test('a gap is told while a further subscription of the same topic waits', options, async (t) => {
  const stack = await start(t, []);
  const site = await start(t, ['--web', 'crates/client/js', '--web-port', '0']);
  const browser = await launch(t);
  const context = await browser.newContext();
  const tabs = [];
  for (const _ of [1, 2]) tabs.push(await tab(context, site, stack.url('?userId=2'), { topics: ['room.7'] }));
  await tabs[0].evaluate(() => client.topic('room.7').publish('lost with the tables'));
  for (const page of tabs) await page.until('room.7', 1);
  await tabs[0].evaluate(() => (lose = '"history"'));
  for (const page of tabs) await page.evaluate(() => void listen('room.7', { last: 3 }));
  // Without a folder for its tables, the stack forgets everything.
  await stack.stop();
  await start(t, [], { port: stack.port });
  for (const page of tabs) {
    await page.told('gap', 'room.7');
    const [{ to }] = await page.events('gap');
    assert.deepEqual([to.seq, await page.evaluate(() => subscriptions[0].position)], [0, to]);
  }
});

test('what cannot be copied to another tab is sent as JSON, and stays as it was', options, async (t) => {
  const [stack, browser] = [await start(t, ['--web', 'crates/client/js', '--web-port', '0']), await launch(t)];
  const net = await network(t, stack);
  const context = await browser.newContext();
  const [first, second] = [await tab(context, stack, net.url('?userId=2')), await tab(context, stack, net.url('?userId=2'))];
  net.isDown = true;
  net.cut();
  const acks = second.evaluate(async () => {
    const content = { text: 'before', at: new Date(0), work() {} };
    const post = client.topic('room.7').publish(content);
    content.text = 'after';
    await listen('room.8');
    return post.then(({ seq }) => seq);
  });
  await second.waitForFunction(() => heard['room.8']);
  // The next tab asks for all of it again.
  await first.close();
  net.isDown = false;
  assert.equal(await acks, 1);
  await second.until('room.7', 1);
  assert.deepEqual((await second.heard())['room.7'], [{ text: 'before', at: '1970-01-01T00:00:00.000Z' }]);
});

test('a late greeting of a closed tab misleads nobody', options, async (t) => {
  const [stack, browser] = [await start(t, ['--web', 'crates/client/js', '--web-port', '0']), await launch(t)];
  const context = await browser.newContext();
  const first = await tab(context, stack, stack.url('?userId=2'));
  await first.evaluate(() => {
    globalThis.channel = new BroadcastChannel('switchboard test');
    channel.onmessage = ({ data }) => data.op === 'hello' && (globalThis.last = data.tab);
  });
  const second = await tab(context, stack, stack.url('?userId=2'));
  await first.waitForFunction(() => globalThis.last);
  await first.evaluate(() => channel.postMessage({ op: 'leader', from: 'closed', to: last, state: 'connected' }));
  assert.ok((await second.evaluate(() => client.topic('room.7').publish('hi'))).seq > 0);
  await second.until('room.7', 1);
});

test('an address that is none ends the client', options, async (t) => {
  const [stack, browser] = [await start(t, ['--web', 'crates/client/js', '--web-port', '0']), await launch(t)];
  const page = await tab(await browser.newContext(), stack, stack.site, { topics: [] });
  await page.waitForFunction(() => client.state === 'closed');
  const [{ code, reason }] = await page.events('closed');
  assert.deepEqual([code, reason], ['refused', 'The address must begin with wss:// or ws://.']);
});

/** Opens a client in a tab. It can stop in the middle of a rotation, and its log has what it hears and what it is told. */
async function rotating(page, url, word) {
  await page.evaluate(
    async ([url, word]) => {
      const { connectShared } = await import('/shared.js');
      const { presence } = await import('/presence.js');
      /** Where the next rotation stops. From then on no ack comes any more. */
      globalThis.stage = undefined;
      let isMute = false;
      let sockets = 0;
      const isStopped = (name) => {
        if (stage !== name) return false;
        isMute = true;
        inRotation();
        return true;
      };
      class Staged extends WebSocket {
        isNext = sockets++ > 0;
        set onopen(handler) {
          super.onopen = handler && (() => (this.isNext && isStopped('handshake')) || handler());
        }
        set onmessage(handler) {
          super.onmessage =
            handler &&
            ((event) => {
              const { type, topics } = JSON.parse(event.data);
              const isMoved = type === 'ack' && topics && this.isNext;
              if (isMoved) isStopped('answer');
              if (type !== 'ack' || !isMute) handler(event);
              // The old connection is still open.
              if (isMoved) isStopped('grace');
            });
        }
        send(text) {
          const isMove = this.isNext && text.includes('"subscribe"');
          if (!isMove || !isStopped('subscribe')) super.send(text);
        }
      }
      const options = { name: 'test', maxDelay: 200, lifetime: 3000, WebSocket: Staged };
      globalThis.client = connectShared(url, options);
      globalThis.log = [];
      for (const name of ['connecting', 'connected', 'recovered', 'gap', 'error', 'closed'])
        client.on(name, (event) => log.push({ name, ...event }));
      globalThis.listen = async (topic) => {
        const subscription = client.topic(topic).subscribe(({ data, seq }) => log.push({ topic, data, seq }));
        await subscription.ready;
        log.push({ topic, from: subscription.position?.seq });
        return subscription;
      };
      await Promise.all(['room.7', 'hall', '@me'].map((topic) => listen(topic)));
      globalThis.here = presence(client.topic('room.7'), () => {}, { data: word });
      await here.ready;
    },
    [url, word],
  );
  return page;
}

/** How a tab can end. */
const ways = {
  close: (page) => page.close(),
  reload: (page) => page.reload(),
  leave: (page) => page.evaluate(() => client.close()),
  crash: (page) => Promise.all([page.waitForEvent('crash'), page.goto('chrome://crash').catch(() => {})]),
};

test('a tab that ends in the middle of a rotation takes nothing from the others', options, async (t) => {
  const env = ['--env', 'MAX_FRAMES_PER_SECOND=0'];
  const [stack, browser] = [await start(t, ['--web', 'crates/client/js', '--web-port', '0', ...env]), await launch(t)];
  const sender = await plain(t, stack.url('?userId=1'));
  const context = await browser.newContext();
  const inRotation = new Map();
  await context.exposeBinding('inRotation', ({ page }) => inRotation.get(page)?.());
  let words = 0;
  const open = async (page) => rotating(page ?? (await empty(context, stack)), stack.url('?userId=2'), `word ${++words}`);
  let tabs = [await open(), await open()];
  let count = 0;
  let isOver = false;
  const everywhere = (content) =>
    Promise.all([
      sender.publish('room.7', content),
      sender.publish('hall', content),
      sender.ask({ action: 'sendMessage', destinationUserId: '2', body: content }),
    ]);
  const steady = (async () => {
    while (!isOver) await everywhere((count += 1));
  })();

  const hears = (page, ...last) =>
    page.waitForFunction(([topic, data]) => log.some((it) => it.topic === topic && it.data === data), last);
  const said = [];
  for (const [stage, way] of Object.entries({ handshake: 'close', subscribe: 'reload', answer: 'leave', grace: 'crash' })) {
    tabs.push(await open());
    const [holder, second, third] = tabs;
    const reached = new Promise((done) => inRotation.set(holder, done));
    await holder.evaluate((name) => (stage = name), stage);
    await soon(reached, `the stage ${stage}`);
    // These messages are kept, and nobody hears their acks. The third tab begins to listen, too.
    const acks = second.evaluate(async (text) => {
      const posts = ['room.7', 'hall'].map((topic) => client.topic(topic).publish(text));
      return (await Promise.all([...posts, client.send('1', text)])).map(({ stored, seq }) => stored ?? seq);
    }, `after ${stage}`);
    await hears(second, 'room.7', `after ${stage}`);
    const late = third.evaluate(async () => {
      (await listen('room.8')).unsubscribe();
      await listen('room.8');
    });
    await ways[way](holder);
    await late;
    const [kept] = await acks;
    assert.ok(kept > 0, `${kept}`);
    said.push(`after ${stage}`);
    tabs = [second, third];
    if (way === 'reload') tabs.push(await open(holder));
  }
  isOver = true;
  await soon(steady, 'the last acks');

  // Now each tab hears what is new.
  await everywhere((count += 1));
  await sender.publish('room.8', count);
  for (const page of tabs) for (const topic of ['room.7', 'hall', '@me']) await hears(page, topic, count);
  await hears(tabs[1], 'room.8', count);
  const kept = [];
  const { epoch } = await sender.publish('room.7', 'position');
  for (let more = true; more; ) {
    const page = await sender.ask({ type: 'history', topic: 'room.7', after: { epoch, seq: kept.at(-1)?.seq ?? 0 } });
    kept.push(...page.messages);
    more = page.more;
  }
  const room = kept.filter(({ hole, data }) => !hole && data !== 'position');
  assert.deepEqual(room.map(({ data }) => data).filter((data) => /after/.test(data)), said);
  for (const page of tabs) {
    const log = await page.evaluate(() => log);
    const of = (name) => log.filter(({ topic }) => topic === name);
    const { from } = of('room.7').find((entry) => 'from' in entry);
    const isNew = ({ seq, data }) => seq > from && data !== 'position';
    assert.deepEqual(
      of('room.7').filter(isNew).map(({ data }) => data),
      room.filter(isNew).map(({ data }) => data),
    );
    const direct = of('@me').map(({ data }) => data).filter((data) => data > 0);
    assert.deepEqual(direct, direct.map((_, index) => direct[0] + index));
    assert.equal(direct.at(-1), count);
    // A topic without history misses nothing without a gap between what was heard before and after.
    const hall = of('hall').filter(({ name, data }) => name === 'gap' || data > 0);
    const silent = hall.filter(({ data }, index) => index && data > hall[index - 1].data + 1);
    assert.deepEqual([silent, hall.at(-1).data], [[], count]);
    const events = log.filter(({ name, topic }) => name === 'error' || (name === 'gap' && topic !== 'hall'));
    assert.deepEqual(events, []);
    // All tabs are one member, and its last word is the one of the tab that was opened last.
    await page.waitForFunction(
      (word) => here.isCurrent && here.users.size === 1 && here.users.get('2') === word,
      `word ${words}`,
    );
    assert.deepEqual(page.errors, []);
  }
});
