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
const { useConnectionState, useTopic } = await import('../react.js');

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
