// The scenarios of ../../scenarios.md, against the real local stack.
import assert from 'node:assert/strict';
import { generateKeyPairSync, sign } from 'node:crypto';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import http from 'node:http';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, test } from 'node:test';
import { WebSocketServer } from 'ws';
import { client, ear, network, plain, soon, start, watch } from './stack.js';

const tried = new Set();

/** A test of a row of the table. */
function scenario(name, work) {
  tried.add(name);
  if (process.env.ONLY && !process.env.ONLY.split(',').includes(name)) return;
  test(name, { timeout: 60_000 }, work);
}

after(() => {
  const table = readFileSync(new URL('../../scenarios.md', import.meta.url), 'utf8');
  const rows = [...table.matchAll(/^\| `([a-z-]+)` \|/gm)].map((row) => row[1]);
  assert.deepEqual([...tried].sort(), rows.sort());
});

const numbers = (count, from = 1) => Array.from({ length: count }, (_, index) => from + index);

describe('scenarios', { concurrency: 4 }, () => {
  scenario('cut', async (t) => {
    const stack = await start(t);
    const net = await network(t, stack);
    const sender = await plain(t, stack.url('?userId=1'));
    const two = client(t, net.url('?userId=2'));
    const heard = ear();
    assert.deepEqual(await two.topic('room.7').subscribe(heard).ready, { history: true, recovered: undefined });
    await sender.publish('room.7', 1);
    await heard.until(1);
    net.isDown = true;
    net.cut();
    for (const number of [2, 3]) await sender.publish('room.7', number);
    net.isDown = false;
    const { topic, from, to } = await two.event('recovered');
    assert.deepEqual([topic, from.seq, to.seq], ['room.7', 1, 3]);
    await sender.publish('room.7', 4);
    await heard.until(4);
    assert.deepEqual(heard.data(), [1, 2, 3, 4]);
    assert.deepEqual(
      heard.heard.map((message) => [message.senderId, message.seq]),
      numbers(4).map((n) => ['1', n]),
    );
    assert.equal(
      two.events.some(({ name }) => name === 'gap'),
      false,
    );
  });

  scenario('restart', async (t) => {
    const folder = mkdtempSync(join(tmpdir(), 'switchboard-'));
    t.after(() => rmSync(folder, { recursive: true }));
    const stack = await start(t, ['--data-dir', folder]);
    const one = client(t, stack.url('?userId=1'));
    const heard = ear();
    await one.topic('room.7').subscribe(heard).ready;
    await one.topic('room.7').publish('before');
    await stack.stop();
    const first = await one.event('connecting');
    assert.equal(first.reason, undefined);
    assert.match((await one.event('connecting')).reason, /1012|1006/);
    const posts = numbers(5).map((number) => one.topic('room.7').publish(number));
    assert.deepEqual(
      posts.map((post) => post.status),
      Array(5).fill('buffered'),
    );
    await start(t, ['--data-dir', folder], { port: stack.port });
    const acks = await soon(Promise.all(posts), 'the acks');
    assert.deepEqual(
      acks.map((ack) => ack.seq),
      [2, 3, 4, 5, 6],
    );
    await heard.until(6);
    assert.deepEqual(heard.data(), ['before', 1, 2, 3, 4, 5]);
    const { messages, more } = await one.topic('room.7').history();
    assert.deepEqual([messages.map(({ data }) => data), more], [[5, 4, 3, 2, 1, 'before'], false]);
  });

  scenario('lost-ack', async (t) => {
    const stack = await start(t);
    const net = await network(t, stack);
    const one = client(t, net.url('?userId=1'));
    await one.event('connected');
    net.isDeaf = true;
    const post = one.topic('room.7').publish('once');
    assert.equal(post.status, 'sent');
    // The ack is on its way, and gets lost.
    await net.until(() => net.lost > 0);
    net.isDeaf = false;
    net.cut();
    const ack = await soon(post, 'the ack');
    assert.deepEqual([ack.id, ack.seq, ack.duplicate], [post.id, 1, true]);
    const { messages } = await one.topic('room.7').history();
    assert.deepEqual(
      messages.map(({ data }) => data),
      ['once'],
    );
  });

  scenario('missing-ack', async (t) => {
    const stack = await start(t);
    const net = await network(t, stack);
    const one = client(t, net.url('?userId=1'), { timeout: 4000 });
    await one.event('connected');
    net.isDeaf = true;
    const post = one.topic('room.7').publish('once');
    await net.until(() => net.lost > 0);
    net.isDeaf = false;
    // The connection stays: only the ack is missing.
    const ack = await soon(post, 'the ack');
    assert.deepEqual([ack.seq, ack.duplicate, net.connections], [1, true, 1]);
  });

  scenario('lost-message', async (t) => {
    const stack = await start(t);
    const net = await network(t, stack);
    const sender = await plain(t, stack.url('?userId=1'));
    const two = client(t, net.url('?userId=2'));
    const heard = ear();
    await two.topic('room.7').subscribe(heard).ready;
    await sender.publish('room.7', 1);
    await heard.until(1);
    net.isDeaf = true;
    await sender.publish('room.7', 2);
    await net.until(() => net.lost > 0);
    net.isDeaf = false;
    for (const number of [3, 4]) await sender.publish('room.7', number);
    await heard.until(4);
    assert.deepEqual(heard.data(), [1, 2, 3, 4]);
    assert.equal(net.connections, 1);
  });

  scenario('lost-last-message', async (t) => {
    const stack = await start(t);
    const net = await network(t, stack);
    const sender = await plain(t, stack.url('?userId=1'));
    const two = client(t, net.url('?userId=2'), { heartbeat: 500 });
    const heard = ear();
    await two.topic('room.7').subscribe(heard).ready;
    await sender.publish('room.7', 1);
    await heard.until(1);
    net.isDeaf = true;
    await sender.publish('room.7', 2);
    await net.until(() => net.lost > 0);
    net.isDeaf = false;
    await heard.until(2);
    assert.deepEqual(heard.data(), [1, 2]);
  });

  scenario('deaf', async (t) => {
    const stack = await start(t);
    const net = await network(t, stack);
    const one = client(t, net.url('?userId=1'), { heartbeat: 500, timeout: 500 });
    const heard = ear();
    await one.topic('room.7').subscribe(heard).ready;
    net.isDeaf = true;
    await net.until(() => net.connections > 1);
    net.isDeaf = false;
    assert.match((await one.event('connecting'), await one.event('connecting')).reason, /does not answer/);
    await soon(one.topic('room.7').publish('hi'), 'the ack');
    await heard.until(1);
  });

  scenario('idle', async (t) => {
    const stack = await start(t, ['--idle-timeout', '4s']);
    const net = await network(t, stack);
    const one = client(t, net.url('?userId=1'), { heartbeat: 1500 });
    await one.event('connected');
    const pings = () => stack.lines.filter((line) => /default .* served/.test(line)).length;
    await net.until(() => pings() >= 4);
    assert.deepEqual([net.connections, one.state], [1, 'connected']);
  });

  scenario('rotation', async (t) => {
    const stack = await start(t, ['--connection-duration', '20s']);
    const net = await network(t, stack);
    const two = client(t, net.url('?userId=2'), { lifetime: 4000 });
    const [room, hall, direct, all] = [ear(), ear(), ear(), ear()];
    two.topic('@me').subscribe(direct);
    await two.topic('room.*').subscribe(all).ready;
    await two.topic('room.7').subscribe(room).ready;
    await two.topic('hall').subscribe(hall).ready;
    let sender = await plain(t, stack.url('?userId=1'));
    let sent = 0;
    let least = Infinity;
    const isOpen = () => two.sockets.filter((socket) => socket.readyState === socket.OPEN).length;
    const rotations = () => two.events.filter(({ name, rotated }) => name === 'connected' && rotated).length;
    for (let since = Date.now(); rotations() < 3; ) {
      // The sender is no client of the library, so it has to look after its own connection.
      if (Date.now() - since > 2000) [sender, since] = [await plain(t, stack.url('?userId=1')), Date.now()];
      sent += 1;
      await Promise.all([
        sender.publish('room.7', sent),
        sender.publish('room.8', sent),
        sender.publish('hall', sent),
        sender.ask({ action: 'sendMessage', destinationUserId: '2', body: sent }),
      ]);
      least = Math.min(least, isOpen());
    }
    for (const it of [room, hall, direct]) await it.until(sent);
    await all.until(2 * sent);
    assert.deepEqual(room.data(), numbers(sent));
    const ofPattern = ['room.7', 'room.8'].map((name) => all.heard.filter(({ topic }) => topic === name));
    for (const heard of [hall.heard, direct.heard, ...ofPattern])
      assert.deepEqual(
        heard.map(({ data }) => data).sort((a, b) => a - b),
        numbers(sent),
      );
    assert.equal(least, 1);
    assert.deepEqual(
      two.events.filter(({ name }) => !['connected'].includes(name)),
      [{ name: 'connecting', attempt: 1, delay: 0 }],
    );
  });

  scenario('order', async (t) => {
    const stack = await start(t, ['--fault', 'message-delay=100ms']);
    const sender = await plain(t, stack.url('?userId=1'));
    const two = client(t, stack.url('?userId=2'));
    const heard = ear();
    await two.topic('room.7').subscribe(heard).ready;
    // The frames overtake each other, and half of them come twice.
    const frames = numbers(30).flatMap((n) => (n % 2 ? [n] : [n, n]));
    await Promise.all(
      frames.map((n, index) => sender.publish('room.7', n, { id: `m${n}`, again: frames[index - 1] === n })),
    );
    await heard.until(30);
    await sender.publish('room.7', 'end', { id: 'end' });
    await heard.until(31);
    assert.deepEqual(
      [...heard.data().slice(0, 30)].sort((a, b) => a - b),
      numbers(30),
    );
    const seqs = heard.heard.map(({ seq }) => seq);
    assert.deepEqual(
      seqs,
      [...new Set(seqs)].sort((a, b) => a - b),
    );
    assert.equal(heard.data().at(-1), 'end');
  });

  scenario('own-order', async (t) => {
    const stack = await start(t, ['--fault', 'reorder-messages=0.5']);
    const one = client(t, stack.url('?userId=1'));
    const heard = ear();
    await one.topic('hall').subscribe(heard).ready;
    const posts = numbers(10).map((number) => one.topic('hall').publish(number));
    await soon(Promise.all(posts), 'the acks');
    await heard.until(10);
    assert.deepEqual(heard.data(), numbers(10));
  });

  scenario('several', async (t) => {
    const stack = await start(t);
    const net = await network(t, stack);
    const one = client(t, net.url('?userId=1'), { buffer: 1 });
    await one.event('connected');
    const room = one.topic('room.7');
    await room.publish('before');
    net.isDeaf = true;
    const post = room.publishAll(['a', 'b', 'c']);
    assert.equal(post.status, 'sent');
    await net.until(() => net.lost > 0);
    net.isDeaf = false;
    net.cut();
    const acks = await soon(post, 'the acks');
    assert.deepEqual(
      acks.map(({ id, seq, duplicate }) => [id, seq, duplicate]),
      [2, 3, 4].map((seq) => [post.id, seq, true]),
    );
    const { messages } = await room.history();
    assert.deepEqual(
      messages.map(({ data }) => data),
      ['c', 'b', 'a', 'before'],
    );
    for (const wrong of [[], numbers(101)]) {
      await assert.rejects(soon(room.publishAll(wrong), 'an answer'), {
        code: 'invalid_field',
        message: /an array of 1 to 100 messages/,
      });
    }
    const large = room.publishAll(['x'.repeat(20_000), 'x'.repeat(20_000)]);
    assert.equal(large.status, 'dropped');
    await assert.rejects(large, { code: 'too_large', message: /its frame has 400\d\d bytes/ });
    const both = [one.topic('hall').publishAll([1, 2]), room.publishAll([3])];
    await assert.rejects(both[1], { code: 'buffer_full' });
    const [first, second] = await soon(both[0], 'the acks');
    assert.deepEqual([first.seq, second.id], [undefined, both[0].id]);
  });

  scenario('busy', async (t) => {
    const stack = await start(t);
    const net = await network(t, stack);
    const one = client(t, net.url('?userId=1'));
    await one.event('connected');
    net.isDeaf = true;
    const posts = ['first', 'second'].map((text) => one.topic('room.7').publish(text));
    await net.until(() => net.lost > 0);
    net.isDeaf = false;
    net.say({ type: 'error', code: 'busy', message: 'too much at once', temporary: true, id: posts[0].id });
    const acks = await soon(Promise.all(posts), 'the acks');
    assert.deepEqual(
      acks.map(({ seq, duplicate }) => [seq, duplicate]),
      [
        [1, true],
        [2, undefined],
      ],
    );
    assert.equal(net.connections, 1);
  });

  scenario('busy-subscribe', async (t) => {
    const stack = await start(t);
    const net = await network(t, stack);
    const one = client(t, net.url('?userId=1'));
    await one.event('connected');
    net.isDeaf = true;
    const names = ['room.1', 'room.2', 'room.3'];
    const ready = names.map((name) => one.topic(name).subscribe(ear()).ready);
    await net.until(() => net.lost > 0);
    net.isDeaf = false;
    net.say({ type: 'error', code: 'busy', message: 'too much at once', temporary: true, id: one.sent[0].id });
    await soon(Promise.all(ready), 'the subscriptions');
    assert.deepEqual(
      one.sent.map(({ topics }) => topics.map(({ topic }) => topic)),
      [names, names],
    );
  });

  scenario('too-fast', async (t) => {
    const stack = await start(t, ['--env', 'MAX_FRAMES_PER_SECOND=20', '--max-environments', '1']);
    const one = client(t, stack.url('?userId=1'), { maxDelay: 2000, timeout: 10_000 });
    await one.event('connected');
    const posts = numbers(80).map((number) => one.topic(`room.${number}`).publish(number));
    const acks = await soon(Promise.all(posts), 'the acks', 50_000);
    assert.deepEqual(
      acks.map(({ seq }) => seq),
      Array(80).fill(1),
    );
    assert.equal(one.sockets.length, 1);
  });

  scenario('no-history', async (t) => {
    const stack = await start(t);
    const net = await network(t, stack);
    const one = client(t, net.url('?userId=1'));
    const heard = ear();
    assert.deepEqual(await one.topic('hall').subscribe(heard, { last: 5 }).ready, {
      history: false,
      recovered: undefined,
    });
    await one.topic('hall').publish(1);
    net.cut();
    assert.deepEqual(await one.event('gap'), {
      name: 'gap',
      topic: 'hall',
      from: undefined,
      to: undefined,
      reason: 'no_history',
    });
    await one.topic('hall').publish(2);
    await heard.until(2);
    assert.deepEqual(heard.data(), [1, 2]);
    const [error] = await Promise.allSettled([one.topic('hall').history()]);
    assert.equal(error.reason.code, 'no_history');
  });

  scenario('history-gone', async (t) => {
    const stack = await start(t);
    const one = client(t, stack.url('?userId=1'));
    const heard = ear();
    const subscription = one.topic('room.7').subscribe(heard);
    await subscription.ready;
    await one.topic('room.7').publish(1);
    const { position } = subscription;
    // Without a folder for its tables, the stack forgets everything.
    await stack.stop();
    await start(t, [], { port: stack.port });
    const gap = await one.event('gap');
    assert.deepEqual([gap.topic, gap.from, gap.reason, gap.to.seq], ['room.7', position, 'expired', 0]);
    // A further listener hears the same, also while there is nothing new.
    for (const count of [1, 2]) {
      const late = await one.topic('room.7').subscribe(ear(), { after: position }).ready;
      assert.deepEqual(late, { history: true, recovered: false });
      await one.topic('room.7').publish(count + 1);
      await heard.until(count + 1);
    }
  });

  test('a further listener hears what it has read, also if the history goes before it has read all', async (t) => {
    const stack = await start(t);
    const net = await network(t, stack);
    const one = client(t, net.url('?userId=1'));
    const sender = await plain(t, stack.url('?userId=2'));
    const first = ear();
    await one.topic('room.7').subscribe(first).ready;
    const long = numbers(4).map((number) => `${number} ${'x'.repeat(15_000)}`);
    let epoch;
    for (const message of long) ({ epoch } = await sender.publish('room.7', message));
    await first.until(4);
    // The question for the second page comes when the history has gone.
    const [socket] = one.sockets;
    const asked = [];
    const isSecond = new Promise((resolve) => {
      socket.send = (text) => {
        if (JSON.parse(text).type === 'history' && asked.push(text) === 2) resolve();
        else Object.getPrototypeOf(socket).send.call(socket, text);
      };
    });
    const further = ear();
    const { ready } = one.topic('room.7').subscribe(further, { after: { epoch, seq: 0 } });
    await soon(isSecond, 'the second question');
    net.isDown = true;
    net.cut();
    await stack.stop();
    await start(t, [], { port: stack.port });
    const again = await plain(t, stack.url('?userId=2'));
    for (const message of ['new 1', 'new 2', 'new 3']) await again.publish('room.7', message);
    net.isDown = false;
    assert.deepEqual(await soon(ready, 'an answer'), { history: true, recovered: false });
    const old = further.data().slice(0, -3);
    assert.deepEqual([old, further.data().slice(-3)], [long.slice(0, old.length), ['new 1', 'new 2', 'new 3']]);
    assert.ok(old.length > 0);
  });

  test('a further listener of a topic without history hears what comes before the ack', async (t) => {
    const net = await network(t, await start(t));
    const one = client(t, net.url());
    await one.event('connected');
    const [socket] = one.sockets;
    const kept = new Promise((resolve) => (socket.send = resolve));
    one.topic('hall').subscribe(ear());
    const text = await kept;
    delete socket.send;
    const further = ear();
    const { ready } = one.topic('hall').subscribe(further, { after: { epoch: 'k3f9xq2a', seq: 0 } });
    net.say({ type: 'data', id: JSON.parse(text).id, payload: { data: 'early' } });
    await new Promise((resolve) => socket.addEventListener('message', resolve, { once: true }));
    socket.send(text);
    assert.deepEqual(await ready, { history: false, recovered: false });
    assert.deepEqual(further.data(), ['early']);
  });

  scenario('history-begins', async (t) => {
    const rules = (rule) => ['--env', `TOPIC_RULES=${JSON.stringify([{ topic: 'room.*', ...rule }])}`];
    const stack = await start(t, rules());
    const net = await network(t, stack);
    const one = client(t, net.url('?userId=1'));
    const heard = ear();
    const { ready } = one.topic('room.7').subscribe(heard);
    assert.equal((await ready).history, false);
    // During a deployment one function has the new rule, and another one still has the old rule.
    const { id } = one.sent.find(({ type }) => type === 'subscribe');
    for (const seq of [1, 2]) {
      net.say({ type: 'data', topic: 'room.7', id, payload: { data: seq }, epoch: 'k3f9xq2a', seq });
    }
    await heard.until(2);
    assert.deepEqual(heard.data(), [1, 2]);
    net.isDown = true;
    net.cut();
    await stack.stop();
    await start(t, rules({ history: { hours: 24 } }), { port: stack.port });
    const sender = await plain(t, stack.url('?userId=2'));
    const to = await sender.publish('room.7', 'missed');
    net.isDown = false;
    const gap = await one.event('gap');
    assert.deepEqual([gap.topic, gap.to.epoch, gap.to.seq], ['room.7', to.epoch, to.seq]);
    await sender.publish('room.7', 3);
    await heard.until(3);
    assert.deepEqual(heard.data(), [1, 2, 3]);
  });

  scenario('pattern', async (t) => {
    const stack = await start(t);
    const net = await network(t, stack);
    const sender = await plain(t, stack.url('?userId=1'));
    const two = client(t, net.url('?userId=2'));
    const [all, room] = [ear(), ear()];
    const ready = [two.topic('room.*').subscribe(all).ready, two.topic('room.7').subscribe(room).ready];
    assert.deepEqual(
      (await soon(Promise.all(ready), 'the subscriptions')).map(({ history }) => history),
      [false, true],
    );
    // What stood in the topic before is no reason to wait.
    await sender.publish('room.7', 1, { id: 'm1' });
    await sender.publish('room.8', 2);
    await sender.publish('room.7', 1, { id: 'm1', again: true });
    await sender.publish('room.7', 3);
    await all.until(({ data }) => data === 3);
    net.isDown = true;
    net.cut();
    await sender.publish('room.7', 4);
    await sender.publish('room.8', 5);
    net.isDown = false;
    assert.deepEqual((await two.event('recovered')).topic, 'room.7');
    const { topic, reason } = await two.event('gap');
    assert.deepEqual([topic, reason], ['room.*', 'no_history']);
    await sender.publish('room.8', 6);
    await sender.publish('room.7', 7);
    await Promise.all([all, room].map((it) => it.until(({ data }) => data === 7)));
    assert.deepEqual(
      all.heard.map(({ topic, seq, senderId, data }) => [topic, seq, senderId, data]),
      [
        ['room.7', 1, '1', 1],
        ['room.8', 1, '1', 2],
        ['room.7', 2, '1', 3],
        ['room.8', 3, '1', 6],
        ['room.7', 4, '1', 7],
      ],
    );
    assert.deepEqual(room.data(), [1, 3, 4, 7]);
    assert.equal(two.events.filter(({ name }) => name === 'gap').length, 1);
  });

  scenario('members', async (t) => {
    const stack = await start(t);
    const [one, two] = [1, 2].map((user) => client(t, stack.url(`?userId=${user}`)));
    const here = watch(one.topic('room.7'), { data: { status: 'here' } });
    await here.it.ready;
    await here.until({ 1: { status: 'here' } });
    assert.deepEqual(here.told[0], {
      topic: 'room.7',
      users: new Map([['1', { status: 'here' }]]),
      count: 1,
      isCurrent: true,
      joined: ['1'],
      left: [],
      changed: [],
    });
    const other = watch(two.topic('room.7'));
    await other.until({ 1: { status: 'here' }, 2: undefined });
    await here.until({ 1: { status: 'here' }, 2: undefined });
    assert.deepEqual([here.told.at(-1).joined, here.it.count], [['2'], 2]);
    await other.it.set('busy');
    await here.until({ 1: { status: 'here' }, 2: 'busy' });
    assert.deepEqual(here.told.at(-1).changed, ['2']);
    // Only a subscribe frame takes back what was said.
    await here.it.set(undefined);
    await other.until({ 1: undefined, 2: 'busy' });
    other.it.stop();
    await here.until({ 1: undefined });
    assert.deepEqual([here.told.at(-1).left, here.it.count], [['2'], 1]);
    for (const { told } of [here, other]) assert.ok(told.every(({ isCurrent }) => isCurrent));
    // Data that is too large changes nothing.
    await assert.rejects(here.it.set('x'.repeat(2000)), { code: 'invalid_field', message: /1024 bytes/ });
    await here.it.refresh();
    assert.deepEqual([...here.it.users], [['1', undefined]]);
  });

  scenario('members-away', async (t) => {
    const stack = await start(t);
    const net = await network(t, stack);
    const one = client(t, net.url('?userId=1'));
    const [two, three] = [await plain(t, stack.url('?userId=2')), await plain(t, stack.url('?userId=3'))];
    await two.ask({ type: 'subscribe', topic: 'room.7' });
    const here = watch(one.topic('room.7'), { data: 'first' });
    await here.until({ 1: 'first', 2: undefined });
    net.isDown = true;
    net.cut();
    await here.until({ 1: 'first', 2: undefined }, false);
    const { joined, left, changed } = here.told.at(-1);
    assert.deepEqual([joined, left, changed], [[], [], []]);
    await three.ask({ type: 'subscribe', topic: 'room.7', data: 'hi' });
    await two.ask({ type: 'unsubscribe', topic: 'room.7' });
    // It is said by the subscribe frame of the next connection, or behind it.
    const saying = here.it.set('second');
    net.isDown = false;
    await soon(saying, 'the answer');
    await here.until({ 1: 'second', 3: 'hi' });
    const back = here.told.filter(({ isCurrent }) => isCurrent).slice(1);
    assert.deepEqual(back.flatMap((event) => event.joined), ['3']);
    assert.deepEqual(back.flatMap((event) => event.left), ['2']);
    assert.ok(here.told.slice(1).every(({ users, isCurrent }) => isCurrent || !users.has('3')));
    one.close();
    await here.until({ 1: 'second', 3: 'hi' }, false);
  });

  scenario('members-rotation', async (t) => {
    const stack = await start(t);
    const one = client(t, stack.url('?userId=1'), { lifetime: 3000 });
    const two = client(t, stack.url('?userId=2'));
    const here = watch(one.topic('room.7'), { data: 'here' });
    await here.it.ready;
    const other = watch(two.topic('room.7'));
    await other.until({ 1: 'here', 2: undefined });
    await here.until({ 1: 'here', 2: undefined });
    const before = [here.told.length, other.told.length];
    for (const _ of [1, 2, 3, 4]) await one.event('connected');
    await here.it.refresh();
    // This change comes last, so whatever the rotations had told would have come before it.
    await other.it.set('end');
    await here.until({ 1: 'here', 2: 'end' });
    await other.until({ 1: 'here', 2: 'end' });
    assert.deepEqual([here.told.length, other.told.length], before.map((count) => count + 1));
  });

  scenario('members-beside', async (t) => {
    const stack = await start(t);
    const net = await network(t, stack);
    const one = client(t, net.url('?userId=1'));
    const room = one.topic('room.7');
    const heard = ear();
    await room.subscribe(heard).ready;
    await room.publish(1);
    const first = watch(room, { data: 'first' });
    await first.until({ 1: 'first' });
    await room.publish(2);
    // One connection is one member, so the last word of all watchers counts.
    const second = watch(room, { data: 'second' });
    await second.until({ 1: 'second' });
    await first.it.set('third');
    await second.until({ 1: 'third' });
    assert.deepEqual(
      one.events.map(({ name }) => name),
      ['connecting', 'connected'],
    );
    net.cut();
    await one.event('recovered');
    await second.it.refresh();
    assert.deepEqual([...second.it.users], [['1', 'third']]);
    // The end of a watcher ends its words, and nothing else.
    first.it.stop();
    await second.until({ 1: 'second' });
    second.it.stop();
    await watch(room).until({ 1: undefined });
    await room.publish(3);
    await heard.until(3);
    assert.deepEqual([heard.data(), one.sockets.length], [[1, 2, 3], 2]);
  });

  scenario('no-members', async (t) => {
    const stack = await start(t);
    const one = client(t, stack.url('?userId=1'));
    const [hall, room] = ['hall', 'room.7'].map((name) => one.topic(name));
    const [heard, there] = [ear(), ear()];
    const { ready } = hall.subscribe(heard);
    const here = watch(hall);
    const words = { code: 'no_presence', message: /the topic `hall` has no presence/ };
    await assert.rejects(soon(here.it.ready, 'an answer'), words);
    await ready;
    await hall.publish('hi');
    // A later watcher hears the same. Words that are too large end their watcher, and not those who hear messages.
    await assert.rejects(soon(watch(hall).it.ready, 'an answer'), words);
    await room.subscribe(there).ready;
    const large = watch(room, { data: 'x'.repeat(2000) });
    await assert.rejects(soon(large.it.ready, 'an answer'), { code: 'invalid_field' });
    for (const topic of [hall, room]) await topic.publish('again');
    await heard.until(2);
    await there.until(1);
    assert.deepEqual([heard.data(), there.data()], [['hi', 'again'], ['again']]);
    assert.deepEqual(
      one.events.map(({ name }) => name),
      ['connecting', 'connected'],
    );
    await assert.rejects(soon(watch(one.topic('@2')).it.ready, 'an answer'), { code: 'forbidden_topic' });
    one.close();
    await assert.rejects(soon(watch(room).it.ready, 'an answer'), { code: 'closed' });
    await assert.rejects(soon(here.it.refresh(), 'an answer'), { code: 'closed' });
  });

  scenario('after', async (t) => {
    const stack = await start(t);
    const sender = await plain(t, stack.url('?userId=1'));
    const { epoch } = await sender.publish('room.7', 1);
    for (const number of [2, 3]) await sender.publish('room.7', number);
    const two = client(t, stack.url('?userId=2'));
    const first = ear();
    const subscription = two.topic('room.7').subscribe(first, { after: { epoch, seq: 1 } });
    assert.deepEqual(await subscription.ready, { history: true, recovered: true });
    assert.deepEqual([first.data(), subscription.position], [[2, 3], { epoch, seq: 3 }]);
    assert.equal(typeof first.heard[0].at, 'number');
    // Further listeners of the same topic read the history for themselves.
    const [second, third, fourth] = [ear(), ear(), ear()];
    const late = [
      two.topic('room.7').subscribe(second, { last: 2 }).ready,
      two.topic('room.7').subscribe(third, { after: { epoch, seq: 0 } }).ready,
      two.topic('room.7').subscribe(fourth).ready,
    ];
    await sender.publish('room.7', 4);
    const results = await Promise.all(late);
    assert.deepEqual(
      results.map(({ recovered }) => recovered),
      [undefined, true, undefined],
    );
    await sender.publish('room.7', 5);
    for (const it of [first, second, third, fourth]) await it.until(({ data }) => data === 5);
    assert.deepEqual(first.data(), [2, 3, 4, 5]);
    assert.ok(
      [
        [2, 3, 4, 5],
        [3, 4, 5],
      ].some((fits) => String(fits) === String(second.data())),
      String(second.data()),
    );
    assert.deepEqual(third.data(), [1, 2, 3, 4, 5]);
    assert.deepEqual(fourth.data(), [4, 5]);

    // They also do so before there is a connection. Then one frame asks for the first position.
    const early = client(t, stack.url('?userId=2'));
    const ears = [3, 1, 3].map((seq) => {
      const it = ear();
      return Object.assign(it, { ready: early.topic('room.7').subscribe(it, { after: { epoch, seq } }).ready });
    });
    const whole = { history: true, recovered: true };
    assert.deepEqual(await Promise.all(ears.map((it) => it.ready)), [whole, whole, whole]);
    assert.deepEqual(ears.map((it) => it.data()), [[4, 5], [2, 3, 4, 5], [4, 5]]);
    assert.equal(early.sent.filter(({ type }) => type === 'history').length, 1);
    // A position that the server refuses ends its listener, and the topic's last listener ends the subscription.
    const wrong = early.topic('room.9');
    const right = wrong.subscribe(ear());
    await right.ready;
    await assert.rejects(wrong.subscribe(ear(), { after: { epoch: '!', seq: 0 } }).ready, { code: 'invalid_field' });
    right.unsubscribe();
    await early.topic('room.8').subscribe(ear()).ready;
    assert.equal(early.sent.filter(({ type }) => type === 'unsubscribe').length, 1);

    // The history is read after the subscription, so nothing is missing between them.
    const [socket] = two.sockets;
    const kept = [];
    socket.send = (text) => kept.push(text);
    two.topic('room.8').subscribe(ear());
    await null;
    delete socket.send;
    await sender.publish('room.8', 1);
    const further = ear();
    const done = two.topic('room.8').subscribe(further, { after: { epoch, seq: 0 } }).ready;
    await two.topic('room.8').history();
    await sender.publish('room.8', 2);
    for (const text of kept) socket.send(text);
    await done;
    await sender.publish('room.8', 3);
    await further.until(({ data }) => data === 3);
    assert.deepEqual(further.data(), [1, 2, 3]);

    // A long history takes several frames, and new messages come between them.
    const long = numbers(6).map((number) => `${number} ${'x'.repeat(15_000)}`);
    for (const message of long) await sender.publish('room.7', message);
    const fifth = ear();
    let isReady = false;
    const { ready } = two.topic('room.7').subscribe(fifth, { last: 6 });
    ready.then(() => (isReady = true));
    let count = 0;
    while (!isReady) await sender.publish('room.7', (count += 1));
    await sender.publish('room.7', (count += 1));
    await fifth.until(({ data }) => data === count);
    const firsts = fifth
      .data()
      .slice(0, -count)
      .map((data) => long.indexOf(data));
    assert.deepEqual([firsts.at(-1), fifth.data().slice(-count)], [5, numbers(count)]);
  });

  scenario('many-topics', async (t) => {
    const stack = await start(t);
    const net = await network(t, stack);
    const sender = await plain(t, stack.url('?userId=1'));
    const two = client(t, net.url('?userId=2'));
    const names = ['room.7', 'hall', 'room.8', 'yard'];
    const ears = names.map(() => ear());
    await Promise.all(names.map((name, index) => two.topic(name).subscribe(ears[index]).ready));
    for (const name of names) await sender.publish(name, `${name} 1`);
    for (const it of ears) await it.until(1);
    net.isDown = true;
    net.cut();
    for (const name of names) await sender.publish(name, `${name} 2`);
    net.isDown = false;
    const told = ['recovered', 'gap', 'recovered', 'gap'].map((name) => two.event(name));
    assert.deepEqual((await Promise.all(told)).map(({ topic }) => topic).sort(), [...names].sort());
    for (const name of names) await sender.publish(name, `${name} 3`);
    for (const it of ears) await it.until(({ data }) => data.endsWith('3'));
    const missed = { 'room.7': [1, 2, 3], hall: [1, 3], 'room.8': [1, 2, 3], yard: [1, 3] };
    names.forEach((name, index) =>
      assert.deepEqual(
        ears[index].data(),
        missed[name].map((n) => `${name} ${n}`),
      ),
    );
  });

  scenario('at-once', async (t) => {
    const stack = await start(t);
    const net = await network(t, stack);
    const sender = await plain(t, stack.url('?userId=1'));
    const { epoch } = await sender.publish('room.7', 1);
    const two = client(t, net.url('?userId=2'));
    const heard = ear();
    await two.topic('room.7').subscribe(heard).ready;
    // A watcher makes the client subscribe once more on the same connection.
    await watch(two.topic('room.7')).it.ready;
    // The post of a message that was published in the same moment is late, and comes twice.
    const late = {
      id: two.sent[0].id,
      payload: { data: 1 },
      type: 'data',
      topic: 'room.7',
      senderId: '1',
      epoch,
      seq: 1,
    };
    for (const _ of [1, 2]) net.say(late);
    await sender.publish('room.7', 2);
    net.say(late);
    await sender.publish('room.7', 3);
    await heard.until(({ data }) => data === 3);
    assert.deepEqual(heard.data(), [1, 2, 3]);
  });

  scenario('leave-and-return', async (t) => {
    const stack = await start(t, ['--fault', 'message-delay=100ms']);
    const one = client(t, stack.url('?userId=1'));
    const [gone, heard] = [ear(), ear()];
    for (const round of numbers(5)) {
      const before = one.topic('hall').subscribe(gone);
      await before.ready;
      before.unsubscribe();
      // The frame is on its way.
      await Promise.resolve();
      const now = one.topic('hall').subscribe(heard);
      await now.ready;
      await one.topic('hall').publish(round);
      await heard.until(round);
      now.unsubscribe();
    }
    assert.deepEqual([gone.data(), heard.data()], [[], numbers(5)]);
  });

  scenario('direct', async (t) => {
    const stack = await start(t);
    const [one, two] = [client(t, stack.url('?userId=1')), client(t, stack.url('?userId=2'))];
    const heard = ear();
    two.topic('@me').subscribe(heard);
    await two.event('connected');
    const ack = await soon(one.send('2', { text: 'hello there!' }), 'the ack');
    assert.equal(ack.delivered, 1);
    await heard.until(1);
    assert.deepEqual([heard.heard[0].senderId, heard.heard[0].data], ['1', { text: 'hello there!' }]);
  });

  scenario('inbox', async (t) => {
    const stack = await start(t);
    const net = await network(t, stack);
    const one = client(t, stack.url('?userId=1'));
    // User 2 is away, and was never here.
    const ack = await soon(one.send('2', 'first'), 'the ack');
    assert.deepEqual([ack.delivered, ack.stored, ack.seq], [0, true, 1]);
    const two = client(t, net.url('?userId=2'));
    const heard = ear();
    await two.topic('@me').subscribe(heard, { last: 10 }).ready;
    await soon(one.send('2', 'second'), 'the ack');
    await heard.until(2);
    // A post that began before the subscribe has no position, and its message is in the history that was asked for.
    net.say({ senderId: '1', body: 'first' });
    await soon(two.topic('@me').history(), 'an answer behind it');
    net.isDown = true;
    net.cut();
    await soon(one.send('2', 'third'), 'the ack');
    net.isDown = false;
    await heard.until(3);
    assert.deepEqual(
      heard.heard.map(({ data, senderId, seq }) => [data, senderId, seq]),
      [
        ['first', '1', 1],
        ['second', '1', 2],
        ['third', '1', 3],
      ],
    );
    assert.equal((await two.event('recovered')).topic, '@me');
    const { messages } = await two.topic('@me').history({ limit: 1 });
    assert.deepEqual(
      messages.map(({ data }) => data),
      ['third'],
    );
  });

  scenario('nobody', async (t) => {
    const stack = await start(t);
    const nobody = client(t, stack.url());
    const [sent] = await Promise.allSettled([nobody.send('2', 'hi')]);
    assert.deepEqual([sent.reason.code, nobody.state], ['unidentified', 'connected']);
    assert.equal(nobody.sockets.length, 1);
  });

  scenario('deleted', async (t) => {
    const stack = await start(t, ['--sigv4', 'off']);
    const one = client(t, stack.url('?userId=1'));
    const heard = ear();
    await one.topic('room.7').subscribe(heard).ready;
    const id = stack.lines.join('\n').match(/gateway +(\S+=) connected/)[1];
    await fetch(`http://localhost:${stack.port}/dev/@connections/${encodeURIComponent(id)}`, { method: 'DELETE' });
    await one.event('recovered');
    await one.topic('room.7').publish('hi');
    await heard.until(1);
  });

  scenario('no-record', async (t) => {
    const stack = await start(t);
    const one = client(t, stack.url('?userId=1'));
    const heard = ear();
    await one.topic('room.7').subscribe(heard).ready;
    const id = stack.lines.join('\n').match(/gateway +(\S+=) connected/)[1];
    const headers = {
      'x-amz-target': 'DynamoDB_20120810.DeleteItem',
      'x-amz-date': '20260101T000000Z',
      'content-type': 'application/x-amz-json-1.0',
      authorization:
        'AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/dynamodb/aws4_request, SignedHeaders=host, Signature=0',
    };
    const dynamodb = stack.lines.join('\n').match(/http:\/\/localhost:\d+/)[0];
    const body = JSON.stringify({ TableName: 'switchboard-dev-connections', Key: { connectionId: { S: id } } });
    const deleted = await fetch(dynamodb, { method: 'POST', headers, body });
    assert.equal(deleted.status, 200, await deleted.text());
    // The server does not know this connection any more. The client finds out and connects again.
    const ack = await soon(one.topic('room.7').publish('hi'), 'the ack');
    assert.equal(ack.seq, 1);
    assert.equal(one.sockets.length, 2);
    await heard.until(1);
  });

  scenario('wrong-token', async (t) => {
    const keys = JSON.stringify({ keys: [generateKeyPairSync('ed25519').publicKey.export({ format: 'jwk' })] });
    const stack = await start(t, ['--env', 'IDENTITY_MODE=verified', '--env', `TOKEN_KEYS=${keys}`]);
    const asked = [];
    const token = (about) => (asked.push(about), 'wrong');
    const one = client(t, stack.url(), { token, refusals: 3 });
    const post = one.topic('room.7').publish('hi');
    const { code, reason } = await one.event('closed');
    assert.equal(code, 'refused');
    assert.match(reason, /refused 3 connections in a row.*401/);
    assert.deepEqual(
      asked.slice(0, 3).map(({ attempt }) => attempt),
      [1, 2, 3],
    );
    assert.match(asked[1].reason, /401/);
    assert.equal(one.state, 'closed');
    await assert.rejects(post, { code: 'refused' });
    await assert.rejects(one.topic('room.7').publish('hi'), { code: 'closed' });
  });

  scenario('token-renewed', async (t) => {
    const { publicKey, privateKey } = generateKeyPairSync('ed25519');
    const keys = JSON.stringify({ keys: [publicKey.export({ format: 'jwk' })] });
    const stack = await start(t, ['--env', 'IDENTITY_MODE=verified', '--env', `TOKEN_KEYS=${keys}`]);
    const signed = (claims) => {
      const text = [{ alg: 'EdDSA' }, claims]
        .map((part) => Buffer.from(JSON.stringify(part)).toString('base64url'))
        .join('.');
      return `${text}.${sign(null, Buffer.from(text), privateKey).toString('base64url')}`;
    };
    const now = Math.floor(Date.now() / 1000);
    // The first one has expired, and the second question fails.
    const answers = [
      () => signed({ sub: '1', exp: now - 100 }),
      () => Promise.reject(new Error('no network')),
      () => signed({ sub: '1', exp: now + 100 }),
    ];
    const reasons = [];
    const token = async ({ attempt, reason }) => (reasons.push(reason), answers[attempt - 1]());
    const one = client(t, stack.url(), { token });
    await soon(one.send('1', 'hi'), 'the ack');
    assert.equal(reasons.length, 3);
    assert.match(reasons[1], /401/);
    assert.equal(reasons[2], 'no network');
  });

  scenario('not-switchboard', async (t) => {
    const server = http.createServer((_, response) => response.end('hello'));
    server.listen(0);
    t.after(() => server.close());
    const silent = new WebSocketServer({ port: 0 });
    const chatty = new WebSocketServer({ port: 0 });
    chatty.on('connection', (socket) => socket.send('Welcome!'));
    for (const it of [silent, chatty]) t.after(() => (it.clients.forEach((socket) => socket.terminate()), it.close()));
    for (const [it, words] of [
      [server, /refused 2 connections.*200/],
      [silent, /refused 2 connections.*does not answer/],
      [chatty, /refused 2 connections.*It sent: Welcome!/],
    ]) {
      const one = client(t, `ws://localhost:${it.address().port}/`, { refusals: 2, timeout: 300 });
      one.topic('hall').publish('hi');
      assert.match((await one.event('closed')).reason, words);
    }
  });

  scenario('unreachable', async (t) => {
    const server = http.createServer().listen(0);
    const { port } = server.address();
    await new Promise((resolve) => server.close(resolve));
    // A proxy takes connections although the server behind it is down.
    const proxy = net.createServer((socket) => socket.once('data', () => socket.end())).listen(0);
    t.after(() => proxy.close());
    for (const address of [port, proxy.address().port]) {
      const one = client(t, `ws://localhost:${address}/`, { refusals: 2, maxDelay: 20 });
      // A server that is down may come back, so the client goes on.
      while ((await one.event('connecting')).attempt < 6);
      assert.equal(one.state, 'connecting');
    }
  });

  scenario('full-buffer', async (t) => {
    const stack = await start(t);
    const one = client(t, stack.url('?userId=1'), { buffer: 2 });
    const posts = numbers(3).map((number) => one.topic('room.7').publish(number));
    assert.deepEqual(
      posts.map(({ status }) => status),
      ['buffered', 'buffered', 'dropped'],
    );
    const results = await soon(Promise.allSettled(posts), 'the acks');
    assert.deepEqual(
      results.map(({ value, reason }) => value?.seq ?? reason.code),
      [1, 2, 'buffer_full'],
    );
    assert.match(results[2].reason.message, /2 messages wait already/);
  });

  scenario('too-large', async (t) => {
    const stack = await start(t);
    const one = client(t, stack.url('?userId=1'));
    const post = one.topic('hall').publish('x'.repeat(128 * 1024));
    assert.equal(post.status, 'dropped');
    await assert.rejects(post, {
      code: 'too_large',
      message: /its frame has 1311\d\d bytes, and the gateway takes 32768/,
    });
    // Characters count in bytes.
    await assert.rejects(one.topic('hall').publish('ž'.repeat(17_000)), { code: 'too_large' });
    assert.equal((await soon(one.topic('hall').publish('x'.repeat(32_500)), 'the ack')).delivered, 0);
    // Where the limit is set too high, the gateway closes the connection. The client goes on without this message.
    const careless = client(t, stack.url('?userId=1'), { frameLimit: 1e6 });
    const posts = ['x'.repeat(40_000), 'hi'].map((message) => careless.topic('hall').publish(message));
    const results = await soon(Promise.allSettled(posts), 'the acks');
    assert.deepEqual(
      results.map(({ value, reason }) => value?.delivered ?? reason.code),
      ['too_large', 0],
    );
  });

  scenario('refused-subscription', async (t) => {
    const stack = await start(t);
    const one = client(t, stack.url('?userId=1'));
    await assert.rejects(one.topic('@2').subscribe(ear()).ready, { code: 'forbidden_topic' });
    const { topic, error } = await one.event('error');
    assert.deepEqual([topic, error.code], ['@2', 'forbidden_topic']);
  });
});
