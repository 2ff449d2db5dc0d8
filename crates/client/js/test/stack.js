// A local stack of a test's own, and a network in front of it that can fail.
import { spawn } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import net from 'node:net';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import WebSocket from 'ws';
import { connect } from '../index.js';
import { presence } from '../presence.js';

const root = fileURLToPath(new URL('../../../..', import.meta.url));
const binaries = join(root, process.env.SWITCHBOARD_BINARIES ?? 'target/debug');

/** Waits for a promise or fails. Only a failing test waits that long. */
export function soon(promise, what, patience = 20_000) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`waited in vain for ${what}`)), patience);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** Starts a stack with further arguments. `port` is the one of a stack that ran before. */
export async function start(t, args = [], { port = 0, env = {} } = {}) {
  const program = join(binaries, 'switchboard-local');
  if (!existsSync(program)) throw new Error(`no ${program}: run \`make build\` (\`make test\` does)`);
  const ports = ['--port', String(port), '--dynamodb-port', '0', '--env', 'METRICS_NAMESPACE='];
  const child = spawn(program, [...ports, ...args], {
    cwd: root,
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, ...env },
  });
  const lines = [];
  const watchers = new Set();
  const ended = once(child, 'exit');
  let isReady = false;
  const address = new Promise((resolve, reject) => {
    for (const stream of [child.stdout, child.stderr]) {
      createInterface({ input: stream }).on('line', (line) => {
        lines.push(line);
        for (const look of watchers) look();
        if (isReady) return;
        const found = lines.join('\n').match(/ws:\/\/localhost:(\d+)\/dev[^]*Ctrl-C/);
        if (!found) return;
        isReady = true;
        resolve(Number(found[1]));
      });
    }
    ended.then(() => reject(new Error(`the stack did not start:\n${lines.join('\n')}`)));
  });
  const stack = {
    port: await soon(address, 'the stack'),
    lines,
    /** The address of the pages, with `--web`. */
    get site() {
      return `http://localhost:${lines.join('\n').match(/^ {2}http:\/\/localhost:(\d+)/m)[1]}/`;
    },
    /** The port of DynamoDB. */
    get dynamodb() {
      return lines.join('\n').match(/--endpoint-url http:\/\/localhost:(\d+)/)[1];
    },
    url: (query = '') => `ws://localhost:${stack.port}/dev${query}`,
    /** Waits for a line of the log. */
    logs(pattern) {
      const found = new Promise((resolve) => {
        const look = () => lines.some((line) => pattern.test(line)) && (watchers.delete(look), resolve());
        watchers.add(look);
        look();
      });
      return soon(found, `${pattern} in the log`);
    },
    async stop() {
      if (child.exitCode === null) child.kill('SIGINT');
      await soon(ended, 'the end of the stack');
    },
  };
  t.after(() => stack.stop());
  return stack;
}

/** A network between clients and a stack. */
export async function network(t, stack) {
  const pairs = new Set();
  const watchers = new Set();
  const proxy = {
    /** Nobody connects. */
    isDown: false,
    /** What comes from the stack is lost. */
    isDeaf: false,
    lost: 0,
    connections: 0,
    url: (query = '') => `ws://localhost:${server.address().port}/dev${query}`,
    /** Cuts all connections, without a close frame. */
    cut() {
      for (const pair of pairs) for (const socket of pair) socket.destroy();
    },
    /** Sends a frame to the clients, as if it came from the stack. */
    say(frame) {
      const text = Buffer.from(JSON.stringify(frame));
      for (const [client] of pairs)
        client.write(Buffer.concat([Buffer.from([0x81, 126, text.length >> 8, text.length & 255]), text]));
    },
    async until(is) {
      while (!is(proxy)) await soon(new Promise((resolve) => watchers.add(resolve)), String(is));
    },
  };
  const changed = () => {
    for (const watcher of watchers) watcher();
    watchers.clear();
  };
  const server = net.createServer((client) => {
    if (proxy.isDown) return client.destroy();
    const upstream = net.connect(stack.port, '127.0.0.1');
    const pair = [client, upstream];
    pairs.add(pair);
    proxy.connections += 1;
    client.pipe(upstream);
    upstream.on('data', (bytes) => {
      if (proxy.isDeaf) proxy.lost += 1;
      else client.write(bytes);
      changed();
    });
    for (const socket of pair) {
      socket.on('error', () => {});
      socket.on('close', () => {
        pairs.delete(pair);
        for (const other of pair) other.destroy();
        changed();
      });
    }
    upstream.on('end', () => client.end());
    changed();
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => {
    proxy.cut();
    server.close();
  });
  return proxy;
}

/** A client of the library, with short times, and a record of what happened to it. */
export function client(t, url, options = {}) {
  const sockets = [];
  const sent = [];
  class Recorded extends WebSocket {
    constructor(address) {
      super(address);
      sockets.push(this);
    }
    send(text) {
      sent.push(JSON.parse(text));
      super.send(text);
    }
  }
  const it = connect(url, { WebSocket: Recorded, maxDelay: 200, timeout: 2000, ...options });
  const events = [];
  const waiting = [];
  for (const name of ['connecting', 'connected', 'recovered', 'gap', 'error', 'closed']) {
    it.on(name, (event) => {
      events.push({ name, ...event });
      for (const wake of waiting.splice(0)) wake();
    });
  }
  t.after(() => it.close());
  return Object.assign(it, {
    events,
    sockets,
    sent,
    /** The next event of this name, counted from the ones that were taken before. */
    async event(name) {
      for (;;) {
        const index = events.findIndex((event) => event.name === name && !event.taken);
        if (index >= 0) {
          events[index].taken = true;
          const { taken: _, ...event } = events[index];
          return event;
        }
        await soon(new Promise((resolve) => waiting.push(resolve)), `${name} after ${JSON.stringify(events)}`);
      }
    },
  });
}

/** A handler that keeps what it hears. `until` waits for so many messages, or for one that fits. */
export function ear() {
  const heard = [];
  let waiting = [];
  const handler = (message) => {
    heard.push(message);
    waiting = waiting.filter((is) => !is());
  };
  return Object.assign(handler, {
    heard,
    data: () => heard.map((message) => message.data),
    until(what) {
      const is = typeof what === 'number' ? () => heard.length >= what : () => heard.some(what);
      const enough = new Promise((resolve) => {
        const found = () => is() && (resolve(), true);
        if (!found()) waiting.push(found);
      });
      return soon(enough, what).catch((error) => {
        throw new Error(`${error.message}, and heard ${JSON.stringify(heard)}`);
      });
    },
  });
}

/** Watches a topic, and keeps what the handler was told. */
export function watch(topic, options) {
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

/** A plain WebSocket that asks and waits for the answer. */
export async function plain(t, url) {
  const socket = new WebSocket(url);
  const answers = new Map();
  const others = [];
  socket.on('message', (text) => {
    const frame = JSON.parse(text);
    const answer = frame.type !== 'data' && answers.get(frame.id)?.shift();
    if (answer) answer(frame);
    else others.push(String(text));
  });
  await once(socket, 'open');
  t.after(() => socket.terminate());
  return {
    socket,
    async ask(frame) {
      const id = frame.id ?? randomUUID();
      if (!answers.has(id)) answers.set(id, []);
      const answer = new Promise((resolve) => answers.get(id).push(resolve));
      socket.send(JSON.stringify({ ...frame, id }));
      const reply = await soon(answer, `the answer to ${JSON.stringify(frame)}`).catch((error) => {
        throw new Error(`${error.message}, and heard ${others}`);
      });
      if (reply.type === 'error') throw new Error(JSON.stringify(reply));
      return reply;
    },
    publish(topic, message, more) {
      return this.ask({ type: 'message', topic, message, ...more });
    },
  };
}
