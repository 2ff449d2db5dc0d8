// Who is here, against the real local stack.
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { presence } from '../presence.js';
import { client, ear, network, plain, soon, start } from './stack.js';

/** Watches a topic, and keeps what the handler was told. */
function watch(topic, options) {
  const told = [];
  const waiting = [];
  const it = presence(
    topic,
    (members) => {
      told.push(members);
      for (const look of waiting) look();
    },
    options,
  );
  return {
    it,
    told,
    /** Waits for these members and words, in any order, once they are true. */
    until(expected, isCurrent = true) {
      const is = () =>
        it.isCurrent === isCurrent &&
        JSON.stringify([...it.users].sort()) === JSON.stringify(Object.entries(expected).map(([k, v]) => [k, v]));
      const found = new Promise((resolve) => {
        const look = () => is() && resolve();
        waiting.push(look);
        look();
      });
      return soon(found, JSON.stringify(expected)).catch((error) => {
        throw new Error(`${error.message}, but ${JSON.stringify([...(it.users ?? [])])} and ${JSON.stringify(told)}`);
      });
    },
  };
}

const options = { timeout: 60_000 };

describe('presence', { concurrency: 4 }, () => {
  test('members come, say something, and leave', options, async (t) => {
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

  test('what changes while the client is away is told when it is back', options, async (t) => {
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

  test('a rotation joins and leaves nobody, and the list stays true', options, async (t) => {
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

  test('it shares the topic with handlers of messages, and its end leaves them alone', options, async (t) => {
    const stack = await start(t);
    const one = client(t, stack.url('?userId=1'));
    const heard = ear();
    await one.topic('room.7').subscribe(heard).ready;
    await one.topic('room.7').publish(1);
    const here = watch(one.topic('room.7'), { data: 'here' });
    await here.until({ 1: 'here' });
    await one.topic('room.7').publish(2);
    here.it.stop();
    const again = watch(one.topic('room.7'));
    // The end of the first one has ended what it said.
    await again.until({ 1: undefined });
    await one.topic('room.7').publish(3);
    await heard.until(3);
    assert.deepEqual(heard.data(), [1, 2, 3]);
    assert.deepEqual(
      one.events.map(({ name }) => name),
      ['connecting', 'connected'],
    );
    assert.equal(one.sockets.length, 1);
  });

  test('a topic without presence says so, and its messages come all the same', options, async (t) => {
    const stack = await start(t);
    const one = client(t, stack.url('?userId=1'));
    const heard = ear();
    const { ready } = one.topic('hall').subscribe(heard);
    const here = watch(one.topic('hall'));
    const words = { code: 'no_presence', message: /the topic `hall` has no presence/ };
    await assert.rejects(soon(here.it.ready, 'an answer'), words);
    await ready;
    await one.topic('hall').publish('hi');
    await heard.until(1);
    // Afterwards, too.
    await assert.rejects(soon(watch(one.topic('hall')).it.ready, 'an answer'), words);
    await one.topic('hall').publish('again');
    await heard.until(2);
    assert.ok(!one.events.some(({ name }) => name === 'gap' || name === 'error'), JSON.stringify(one.events));
    await assert.rejects(soon(watch(one.topic('@2')).it.ready, 'an answer'), { code: 'forbidden_topic' });
    one.close();
    await assert.rejects(soon(watch(one.topic('room.7')).it.ready, 'an answer'), { code: 'closed' });
    await assert.rejects(soon(here.it.refresh(), 'an answer'), { code: 'closed' });
  });

  test('a long list comes in several frames, and beyond a thousand there is a count', options, async (t) => {
    const stack = await start(t);
    const one = client(t, stack.url('?userId=1'));
    // The parts of a list are put in by hand, because so many members take too long.
    const here = watch(one.topic('room.7'));
    await here.it.ready;
    const socket = one.sockets[0];
    const answer = (reply) => {
      const { id } = one.sent.findLast(({ type }) => type === 'presence');
      socket.onmessage({ data: JSON.stringify({ type: 'presence', id, topic: 'room.7', ...reply }) });
    };
    const hear = socket.onmessage;
    const listed = async (...replies) => {
      socket.onmessage = () => {};
      const asked = here.it.refresh();
      socket.onmessage = hear;
      for (const reply of replies) answer(reply);
      await soon(asked, 'the list');
    };
    await listed(
      { users: ['1', '2'], data: { 2: 'busy' }, count: 3, more: true },
      { users: ['__proto__'], count: 3 },
    );
    assert.deepEqual([...here.it.users], [['1', undefined], ['2', 'busy'], ['__proto__', undefined]]);
    await listed({ count: 1500 });
    assert.deepEqual([here.it.users, here.it.count], [undefined, 1500]);
    socket.onmessage({ data: '{"type":"presence","topic":"room.7","joined":["8","9"],"left":["2"]}' });
    assert.equal(here.it.count, 1501);
    await soon(Promise.resolve(), 'the handler');
    assert.deepEqual([here.told.at(-1).joined, here.told.at(-1).left], [['8', '9'], ['2']]);
  });
});
