// What presence.js does with answers that no small stack gives. The scenarios have the rest.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { client, soon, start, watch } from './stack.js';

test('a long list comes in several frames, and beyond a thousand there is a count', { timeout: 60_000 }, async (t) => {
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
