// Several messages in one frame, against the real local stack.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import WebSocket from 'ws';
import { client, ear, plain, start } from './stack.js';

const RULES = 'TOPIC_RULES=[{"topic":"ticks.*","batchMs":250,"wildcard":true}]';

test('messages of a batch arrive one by one', { timeout: 60_000 }, async (t) => {
  const stack = await start(t, ['--env', RULES, '--env', 'MAX_FRAMES_PER_SECOND=0']);
  const frames = [];
  class Recorder extends WebSocket {
    set onmessage(hear) {
      super.onmessage = hear && ((event) => (frames.push(JSON.parse(event.data)), hear(event)));
    }
  }
  const one = client(t, stack.url('?userId=1'), { WebSocket: Recorder });
  const heard = ear();
  const other = ear();
  await one.topic('ticks.1').subscribe(heard).ready;
  await one.topic('ticks.2').subscribe(other).ready;
  const sender = await plain(t, stack.url());
  const numbers = Array.from({ length: 20 }, (_, index) => index);
  for (const number of numbers) assert.equal((await sender.publish('ticks.1', number)).queued, true);
  await heard.until(20);
  assert.deepEqual(heard.data(), numbers);
  assert.equal(heard.heard[0].topic, 'ticks.1');
  assert.deepEqual(other.data(), []);
  const batches = frames.filter(({ type }) => type === 'batch');
  assert.ok(batches.length > 0 && batches.some(({ items }) => items.length > 1), JSON.stringify(frames));
});
