// The hooks, with the real React in StrictMode, which mounts every component twice.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Window } from 'happy-dom';
import { client, network, plain, soon, start } from './stack.js';

const window = new Window();
// Node 20 has no navigator, which React looks at.
globalThis.navigator ??= window.navigator;
Object.assign(globalThis, { window, document: window.document });
const { createElement: h, StrictMode } = await import('react');
const { createRoot } = await import('react-dom/client');
const { useConnectionState, usePresence, useTopic } = await import('../react.js');

/** Waits until the page shows a text. */
function shows(page, text) {
  return soon(
    new Promise((resolve) => {
      const look = () => page.textContent === text && (observer.disconnect(), resolve());
      const observer = new window.MutationObserver(look);
      observer.observe(page, { childList: true, subtree: true, characterData: true });
      look();
    }),
    text,
  ).catch((error) => {
    throw new Error(`${error.message}, but ${page.textContent}`);
  });
}

test('a component shows its topic and the state of the connection', async (t) => {
  const stack = await start(t);
  const net = await network(t, stack);
  const sender = await plain(t, stack.url('?userId=1'));
  for (const number of [1, 2, 3]) await sender.publish('room.7', number);
  await sender.publish('room.8', 'other');
  const one = client(t, net.url('?userId=1'));
  const errors = [];
  function Room({ name }) {
    const state = useConnectionState(one);
    const { messages, error, publish } = useTopic(one, name, { last: 2, keep: 3 });
    const text = `${state}: ${error?.code ?? messages.map(({ data }) => data).join(' ')}`;
    return h('button', { onClick: () => publish('hi') }, text);
  }
  const page = window.document.createElement('div');
  window.document.body.append(page);
  const root = createRoot(page, { onUncaughtError: (error) => errors.push(error) });
  t.after(() => root.unmount());
  const render = (name) => root.render(h(StrictMode, null, h(Room, { name })));

  render('room.7');
  await shows(page, 'connected: 2 3');
  page.querySelector('button').click();
  await shows(page, 'connected: 2 3 hi');
  await sender.publish('room.7', 5);
  await shows(page, 'connected: 3 hi 5');
  net.isDown = true;
  net.cut();
  await shows(page, 'connecting: 3 hi 5');
  net.isDown = false;
  await shows(page, 'connected: 3 hi 5');
  render('room.8');
  await shows(page, 'connected: other');
  render('@2');
  await shows(page, 'connected: forbidden_topic');
  render('room.7');
  await shows(page, 'connected: hi 5');
  // StrictMode subscribed twice, and the server heard of it once.
  assert.deepEqual([errors, one.sockets.length], [[], 2]);
  one.close();
  await shows(page, 'closed: hi 5');
});

test('a component shows what comes to a pattern', { timeout: 60_000 }, async (t) => {
  const stack = await start(t);
  const one = client(t, stack.url('?userId=1'));
  const sender = await plain(t, stack.url('?userId=2'));
  function All({ of = one, last }) {
    const { messages, error } = useTopic(of, 'room.*', last && { last });
    return h('p', null, error ? `${error.code}: ${error.message}` : messages.map((it) => `${it.topic} ${it.data}`).join());
  }
  const page = window.document.createElement('div');
  window.document.body.append(page);
  const root = createRoot(page);
  t.after(() => root.unmount());
  root.render(h(StrictMode, null, h(All)));
  await shows(page, '');
  await soon(one.topic('room.*').subscribe(() => {}).ready, 'the subscription');
  for (const topic of ['room.7', 'room.8']) await sender.publish(topic, 'hi');
  await shows(page, 'room.7 hi,room.8 hi');
  // A pattern has no newest messages, and the error says so.
  root.render(h(StrictMode, null, h(All, { of: client(t, stack.url('?userId=3')), last: 2 })));
  const words = 'must be absent with a pattern, because a position is of one topic';
  await shows(page, `invalid_field: the field \`after\` or \`last\` ${words}`);
});

test('a component shows who is here', async (t) => {
  const stack = await start(t);
  const net = await network(t, stack);
  const one = client(t, net.url('?userId=1'));
  const two = await plain(t, stack.url('?userId=2'));
  await two.ask({ type: 'subscribe', topic: 'room.8' });
  const errors = [];
  function Room({ name, data }) {
    const { users, count, isCurrent, error } = usePresence(one, name, { data });
    const list = [...users].map(([user, word]) => `${user} ${word}`).sort();
    return h('p', null, error?.code ?? `${isCurrent ? count : '?'}: ${list}`);
  }
  const page = window.document.createElement('div');
  window.document.body.append(page);
  const root = createRoot(page, { onUncaughtError: (error) => errors.push(error) });
  t.after(() => root.unmount());
  const render = (name, data) => root.render(h(StrictMode, null, h(Room, { name, data })));

  render('room.7', 'here');
  await shows(page, '1: 1 here');
  await two.ask({ type: 'subscribe', topic: 'room.7', data: 'hello' });
  await shows(page, '2: 1 here,2 hello');
  // The same data in a further render is nothing new.
  render('room.7', 'here');
  render('room.7', 'away');
  await shows(page, '2: 1 away,2 hello');
  render('room.7', undefined);
  await shows(page, '2: 1 undefined,2 hello');
  net.isDown = true;
  net.cut();
  await shows(page, '?: 1 undefined,2 hello');
  net.isDown = false;
  await shows(page, '2: 1 undefined,2 hello');
  render('room.8', 'x'.repeat(2000));
  await shows(page, 'invalid_field');
  render('hall');
  await shows(page, 'no_presence');
  assert.deepEqual(errors, []);
  // StrictMode mounts twice, and the server heard of one subscription and one word.
  const sent = one.sent.filter(({ topic, type }) => topic === 'room.7' && type === 'subscribe');
  assert.deepEqual(
    sent.slice(0, 2).map(({ data }) => data),
    ['here', undefined],
  );
  const words = one.sent.filter(({ type, data }) => type === 'presence' && data !== undefined);
  assert.deepEqual(
    words.map(({ data }) => data),
    ['away'],
  );
});

test('a component tells when the server ends its subscription', async (t) => {
  const stack = await start(t);
  const one = client(t, stack.url('?userId=1'));
  function Room() {
    const { messages, error } = useTopic(one, 'room.7', { keep: 1 });
    const { error: other } = usePresence(one, 'room.7');
    return h('p', null, error ? `${error.code} ${other?.code}` : messages.map(({ data }) => data).join(' '));
  }
  const page = window.document.createElement('div');
  const root = createRoot(page);
  t.after(() => root.unmount());
  root.render(h(StrictMode, null, h(Room)));
  await one.event('connected');
  for (const number of [1, 2]) await one.topic('room.7').publish(number);
  await shows(page, '2');
  await stack.stop();
  const rules = JSON.stringify([{ topic: 'room.*', presence: true, subscribe: 'granted' }]);
  await start(t, ['--env', `TOPIC_RULES=${rules}`], { port: stack.port });
  await shows(page, 'forbidden_topic forbidden_topic');
});

test('a word that a topic took late does not hide the error of the next topic', async (t) => {
  const stack = await start(t);
  const one = client(t, stack.url('?userId=1'));
  function Room({ name, data, mark = '' }) {
    const { count, isCurrent, error } = usePresence(one, name, { data });
    return h('p', null, `${error?.code ?? `${isCurrent}: ${count}`}${mark}`);
  }
  const page = window.document.createElement('div');
  const root = createRoot(page);
  t.after(() => root.unmount());
  const render = (name, data, mark) => root.render(h(StrictMode, null, h(Room, { name, data, mark })));
  render('room.7', 'here');
  await shows(page, 'true: 1');
  const [socket] = one.sockets;
  const kept = new Promise((resolve) => {
    socket.send = (text) => {
      const { type, data } = JSON.parse(text);
      if (type === 'presence' && data === 'away') resolve(text);
      else Object.getPrototypeOf(socket).send.call(socket, text);
    };
  });
  render('room.7', 'away');
  const text = await soon(kept, 'the word');
  render('hall', 'away');
  await shows(page, 'no_presence');
  delete socket.send;
  const answered = new Promise((resolve) => {
    socket.addEventListener('message', ({ data }) => JSON.parse(data).id === JSON.parse(text).id && resolve());
  });
  socket.send(text);
  await soon(answered, 'the answer');
  await new Promise(setImmediate);
  // This is shown after what the answer has changed.
  render('hall', 'away', '!');
  await shows(page, 'no_presence!');
});
