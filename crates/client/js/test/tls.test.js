// wss:// against the TLS of the local stack, whose authority nobody but this test trusts.
import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import WebSocket from 'ws';
import { client, ear, network, soon, start } from './stack.js';

test('a connection over TLS is cut, and goes on', { timeout: 60_000 }, async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'switchboard-'));
  t.after(() => rmSync(folder, { recursive: true }));
  const stack = await start(t, [], { env: { TMPDIR: folder } });
  const own = readdirSync(folder).find((name) => name.startsWith('switchboard-local-'));
  const ca = readFileSync(join(folder, own, 'own.pem'));
  class Trusting extends WebSocket {
    constructor(url) {
      super(url, { ca });
    }
  }
  const net = await network(t, stack);
  const url = net.url('?userId=1').replace('ws:', 'wss:');
  const one = client(t, url, { WebSocket: Trusting });
  const heard = ear();
  await soon(one.topic('room.7').subscribe(heard).ready, 'the subscription');
  await one.topic('room.7').publish('before');
  net.cut();
  await one.event('recovered');
  await soon(one.topic('room.7').publish('after'), 'the ack');
  await heard.until(2);
  assert.deepEqual(heard.data(), ['before', 'after']);

  // Without its authority the client goes on trying, and says why.
  const stranger = client(t, url, { WebSocket });
  await stranger.event('connecting');
  assert.match((await stranger.event('connecting')).reason, /certificate/);
});
