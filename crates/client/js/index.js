// The client of Switchboard. index.d.ts describes what it offers, and README.md shows how to use it.

/** Messages that overtook an earlier one wait this long for it, in ms. Then the client asks for what is missing. */
const HOLD = 1000;

/** After a rotation the old connection stays open this long, in ms, because posts to it may be under way. */
const GRACE = 2000;

/** The client asks this often for what is missing: after 1, 2, 4 and 8 s. The server settles a number within 10 s. */
const TRIES = 4;

/** The server takes this many topics in one ping, and in one subscribe frame. */
const PINGED = 20;
const SUBSCRIBED = 100;

/** A pattern knows this many of the newest messages again. */
const SEEN = 1000;

/** At most this many messages wait for their answers. The server takes bursts of 100 frames, and 50 a second. */
const AT_ONCE = 20;

export class SwitchboardError extends Error {
  constructor(code, message, more = {}) {
    super(message);
    this.name = 'SwitchboardError';
    this.code = code;
    this.temporary = Boolean(more.temporary);
    this.requestId = more.requestId;
  }
}

const errorOf = (frame) => new SwitchboardError(frame.code, frame.message, frame);
const sizeOf = (frame) => new TextEncoder().encode(JSON.stringify(frame)).length;
const isHidden = () => globalThis.document?.hidden;

export function connect(url, options = {}) {
  const { token, WebSocket = globalThis.WebSocket, buffer = 1000, refusals = 20, frameLimit = 32_768 } = options;
  const { timeout = 10_000, maxDelay = 30_000, heartbeat = 540_000, lifetime = 7_200_000 } = options;
  if (!/^wss?:\/\//.test(url)) throw new TypeError('The address must begin with wss:// or ws://.');
  if (!WebSocket) throw new TypeError('Pass a WebSocket: connect(url, { WebSocket }).');

  const handlers = new Map();
  /** The topics with listeners, by name. */
  const topics = new Map();
  /** What waits for an answer on its connection, by id. */
  const requests = new Map();
  /** The messages without an ack, and the queries without an answer, by id. They survive their connection. */
  const outbox = new Map();

  let state = 'connecting';
  /** The connection in use, the one that is being opened, and the one that a rotation replaced. */
  let current, next, old;
  /** The timer of the next attempt. */
  let waiting;
  let attempts = 0;
  let refused = 0;
  /** Messages without a position that one of two open connections delivered, while the other may bring a copy. */
  let copies = [];
  /** While the server is busy: the timer of the next try, and how often it was busy in a row. */
  let pause;
  let errors = 0;
  /** How many messages may wait for their answers. */
  let room = AT_ONCE;
  let pings = 0;
  let ids = 0;
  const prefix = Math.random().toString(36).slice(2) + Math.random().toString(36).slice(2, 8);
  const newId = () => `${prefix}-${++ids}`;

  const emit = (name, event) => handlers.get(name)?.forEach((handler) => call(handler, event));
  const backOff = (tries) => Math.random() * Math.min(maxDelay, 500 * 2 ** Math.min(tries, 20));

  // What the application does wrong must not end a connection, and nobody should overlook it.
  function call(handler, argument) {
    try {
      handler(argument);
    } catch (error) {
      setTimeout(() => {
        throw error;
      });
    }
  }

  // ---- Connections -------------------------------------------------------------------------------------------------

  /** Opens a connection. If there is one, both are open until the new one has taken over. */
  async function open(reason) {
    clearTimeout(waiting);
    waiting = undefined;
    const conn = { timers: [], named: new Map(), heardAt: 0 };
    next = conn;
    attempts += 1;
    after(conn, 3 * timeout, () => end(conn, 'The handshake took too long.'));
    try {
      const value = await token?.({ attempt: attempts, reason });
      if (conn.isOver) return;
      const query = value == null ? '' : `${url.includes('?') ? '&' : '?'}token=${encodeURIComponent(value)}`;
      const socket = (conn.socket = new WebSocket(url + query));
      socket.onopen = () => opened(conn);
      socket.onmessage = (event) => hear(conn, event.data);
      socket.onerror = (event) => (conn.words = event.message);
      socket.onclose = ({ code, reason: words }) =>
        end(
          conn,
          conn.isOpen ? `The connection ended with ${code} ${words}`.trim() : conn.words || 'The handshake failed',
          code,
        );
    } catch (error) {
      end(conn, error?.message ?? String(error));
    }
  }

  const after = (conn, delay, work) => conn.timers.push(setTimeout(work, delay));

  function opened(conn) {
    if (old) end(old);
    conn.isOpen = true;
    conn.timers.splice(0).forEach(clearTimeout);
    old = current;
    old?.timers.splice(0).forEach(clearTimeout);
    current = conn;
    next = undefined;
    state = 'connected';
    // A million clients that connected in the same second would rotate at 463 connections a second.
    after(conn, lifetime * (0.65 + 0.3 * Math.random()), () => next || waiting || open('rotation'));
    // A connection that does not answer has ended by then.
    after(conn, 3 * timeout, () => (attempts = 0));
    beat(conn, Date.now());
    emit('connected', { rotated: Boolean(old) });
    sync();
    pump();
  }

  function end(conn, reason, code) {
    if (conn.isOver) return;
    conn.isOver = true;
    conn.timers.forEach(clearTimeout);
    if (conn.socket) {
      conn.socket.onopen = conn.socket.onmessage = conn.socket.onclose = null;
      conn.socket.onerror = () => {};
      conn.socket.close();
    }
    const isOld = conn === old;
    if (isOld) old = undefined;
    if (conn === current) current = undefined;
    if (conn === next) next = undefined;
    if (code === 1009) {
      const sent = [...outbox.values()].filter((item) => item.conn === conn);
      const [largest] = sent.sort((a, b) => b.text.length - a.text.length);
      if (largest) settle(largest, new SwitchboardError('too_large', 'The message is too large.'));
    }
    for (const t of topics.values()) if (t.home === conn) extras(t, 'lost');
    for (const [id, request] of requests) {
      if (request.conn !== conn) continue;
      forget(id, request);
      request.lost();
    }
    if (isOld || state === 'closed') return;

    if (conn.isForeign) refuse(reason);
    else if (conn.socket && !conn.isOpen) {
      // A browser does not say why a handshake failed. A server that answers HTTP has refused it.
      const probe = globalThis.fetch?.(url.replace(/^ws/, 'http'), { method: 'HEAD', mode: 'no-cors' });
      Promise.resolve(probe).then(
        () => refuse(reason),
        () => {},
      );
    }
    if (state === 'closed') return;
    let delay = 0;
    if (!next && !waiting) waiting = setTimeout(open, (delay = backOff(attempts)), reason);
    if (current) return;
    state = 'connecting';
    emit('connecting', { attempt: attempts + (next ? 0 : 1), reason, delay });
  }

  function refuse(reason) {
    if (++refused < refusals || current || state === 'closed') return;
    close(
      'refused',
      `The server refused ${refused} connections in a row. The token or the address may be wrong. ${reason}`,
    );
  }

  function close(code = 'closed', reason = 'The client is closed.') {
    if (state === 'closed') return;
    state = 'closed';
    clearTimeout(waiting);
    clearTimeout(pause);
    for (const stop of stops) stop();
    for (const conn of [old, next, current]) if (conn) end(conn, reason);
    const error = new SwitchboardError(code, reason);
    for (const item of outbox.values()) settle(item, error);
    for (const t of topics.values()) drop(t, error);
    emit('closed', { code, reason });
  }

  /** Pings. It is quiet, which costs less, if the server was heard since the ping before. */
  function beat(conn, since) {
    after(conn, heartbeat * (0.8 + 0.2 * Math.random()), () => {
      beat(conn, Date.now());
      if (conn.heardAt > since) conn.socket.send(JSON.stringify({ ...ping(), quiet: true }));
      else check();
    });
  }

  function ping() {
    const silent = [...topics.values()].filter((t) => t.position && t.on === current && !t.isBusy && !t.isFresh);
    silent.sort((a, b) => a.pinged - b.pinged).splice(PINGED);
    for (const t of topics.values()) t.isFresh = false;
    for (const t of silent) t.pinged = ++pings;
    return { type: 'ping', positions: Object.fromEntries(silent.map((t) => [t.name, t.position])) };
  }

  /** Finds out whether the connection is alive. */
  function check() {
    const conn = current;
    if (!conn || conn.isChecking) return;
    conn.isChecking = true;
    const at = Date.now();
    ask(
      conn,
      ping(),
      () => (conn.isChecking = false),
      () => {
        conn.isChecking = false;
        if (conn.isOver || conn.heardAt >= at || isHidden()) return;
        // The timer came much too late, so this machine slept. The answer may be there in a moment.
        if (Date.now() - at > 2 * timeout) return check();
        conn.isForeign = !conn.isAnswered;
        end(conn, 'The server does not answer.');
      },
    );
  }

  function wake() {
    if (isHidden() || state === 'closed') return;
    if (waiting && !current) open('The network or the page is back.');
    else check();
  }

  // ---- Requests ----------------------------------------------------------------------------------------------------

  /** Sends a frame. Then either `done` gets the answer, or `lost` is called. `part` gets frames before the answer. */
  function ask(conn, frame, done, lost, part) {
    const id = (frame.id ??= newId());
    send(conn, id, JSON.stringify(frame), { done, lost, part, isPing: frame.type === 'ping' });
    return id;
  }

  function send(conn, id, text, request) {
    requests.set(id, request);
    request.conn = conn;
    request.timer = setTimeout(() => {
      requests.delete(id);
      if (!request.isPing) check();
      request.lost();
    }, timeout);
    conn.socket.send(text);
  }

  function forget(id, request) {
    clearTimeout(request.timer);
    requests.delete(id);
  }

  function hear(conn, text) {
    conn.heardAt = Date.now();
    let frame;
    try {
      frame = JSON.parse(text);
    } catch {
      // It is looked at below.
    }
    if (Object(frame) !== frame) {
      if (conn.isAnswered) return;
      conn.isForeign = true;
      return end(conn, `The server does not answer as Switchboard does. It sent: ${String(text).slice(0, 80)}`);
    }
    const { type, id } = frame;
    if (/^(ack|batch|data|error|history|pong|presence)$/.test(type)) {
      conn.isAnswered = true;
      refused = 0;
    }
    // A topic that is busy sends several messages at once.
    if (type === 'batch' || type === 'data') {
      const own = topics.get(frame.topic) ?? conn.named.get(id);
      const name = frame.topic ?? own?.name;
      // The server sends a message once, also if this client listens to its topic and to patterns that contain it.
      const isIn = (t) => t.name.endsWith('*') && name?.startsWith(t.name.slice(0, -1));
      const all = new Set([own, ...[...topics.values()].filter(isIn)]);
      for (const { data } of frame.items ?? [frame.payload ?? {}])
        for (const t of all) take(conn, t, { ...frame, topic: name }, data);
      return;
    }
    if (!type && 'senderId' in frame) return take(conn, topics.get('@me'), frame, frame.body);
    for (const [name, position] of Object.entries(frame.behind ?? {})) isBehind(topics.get(name), position);

    const request = requests.get(id);
    if (type === 'presence' && !request) {
      // While a rotation has not come to this topic yet, the old connection still tells.
      const t = topics.get(frame.topic);
      if (t && (conn === current || t.home === conn)) extras(t, 'changed', frame);
      return;
    }
    const isUnknown = type === 'error' && frame.code === 'unidentified';
    // A ping without an id was quiet.
    if (isUnknown && (request?.isPing || id == null)) return end(conn, frame.message);
    if (!request) return;
    if (type === 'history' && request.part) return request.part(frame);
    if (type === 'presence') {
      // A long list of members comes in several frames.
      (frame.parts = request.parts ??= []).push(frame);
      if (frame.more) return;
    }
    forget(id, request);
    // Either the connection has no record, or a connection without a user asked for what needs one. A ping tells.
    if (isUnknown) ask(request.conn, { type: 'ping' }, () => request.done(frame), request.lost);
    else request.done(frame);
  }

  // ---- Messages to the server --------------------------------------------------------------------------------------

  /** Sends what waits. Frames of one lane go one after another, because the server works on frames in parallel. */
  function pump() {
    if (!current || pause) return;
    const taken = new Set();
    let count = 0;
    for (const item of outbox.values()) {
      if (!item.conn && !taken.has(item.lane)) write(item);
      taken.add(item.lane);
      if (item.conn && ++count >= room) return;
    }
  }

  function write(item) {
    const { id, text } = item;
    item.conn = current;
    const lost = () => {
      item.conn = undefined;
      pump();
    };
    const done = (frame) => {
      if (!frame.temporary) {
        errors = 0;
        room = Math.min(room + 1, AT_ONCE);
        return frame.type === 'error' ? settle(item, errorOf(frame)) : settle(item, undefined, frame);
      }
      // The server has too much to do, or this client sends too fast. So it waits, and then begins with little.
      item.conn = undefined;
      room = 1;
      pause ??= setTimeout(
        () => {
          pause = undefined;
          pump();
        },
        500 + backOff(++errors),
      );
    };
    send(current, id, item.isRepeated ? `${text.slice(0, -1)},"again":true}` : text, { done, lost });
    item.isRepeated = item.isMessage;
  }

  function settle(item, error, frame) {
    if (!outbox.delete(item.id)) return;
    if (error) item.reject(error);
    else item.resolve(frame);
    pump();
  }

  function put(lane, frame, isMessage) {
    const { id } = frame;
    return new Promise((resolve, reject) => {
      if (state === 'closed') return reject(new SwitchboardError('closed', 'The client is closed.'));
      outbox.set(id, { id, lane, text: JSON.stringify(frame), isMessage, resolve, reject });
      pump();
    });
  }

  function post(lane, content, { id = newId() } = {}, read = (ack) => ack) {
    const frame = { ...content, id };
    const size = sizeOf({ ...frame, again: true });
    let problem;
    if (state === 'closed') problem = ['closed', 'The client is closed.'];
    else if (outbox.has(id)) problem = ['invalid_field', `A message with the id ${id} still waits for its ack.`];
    else if (outbox.size >= buffer) problem = ['buffer_full', `${buffer} messages wait already, and no more are kept.`];
    else if (size > frameLimit) {
      problem = [
        'too_large',
        `The message is too large: its frame has ${size} bytes, and the gateway takes ${frameLimit}.`,
      ];
    }
    const promise = problem ? Promise.reject(new SwitchboardError(...problem)) : put(lane, frame, true).then(read);
    // An application that does not look at the result must not be ended by it.
    promise.catch(() => {});
    return Object.assign(promise, { id, status: problem ? 'dropped' : outbox.get(id)?.conn ? 'sent' : 'buffered' });
  }

  async function history(name, range) {
    const page = await put(newId(), { type: 'history', topic: name, ...range, id: newId() });
    return { ...page, messages: page.messages.map((message) => read(name, page.epoch, message)) };
  }

  // ---- Topics ------------------------------------------------------------------------------------------------------

  /** A message of a history frame. A hole is a number that will never have a message. */
  function read(topic, epoch, { seq, hole, data, senderId, at }) {
    return hole ? { seq, isHole: true } : { topic, data, senderId, epoch, seq, at };
  }

  /** A message that came live. */
  function take(conn, t, { topic = t?.name, senderId, epoch, seq }, data) {
    if (!t) return;
    const message = { topic, data, senderId, epoch, seq };
    t.isFresh = true;
    if (seq && topic !== t.name) {
      // A pattern has no positions of its own, so it hears messages as they come, and each of them once.
      const key = [topic, epoch, seq].join();
      if (t.seen.has(key)) return;
      const [oldest] = t.seen.add(key);
      if (t.seen.size > SEEN) t.seen.delete(oldest);
      return deliver(t, message);
    }
    if (seq) return offer(t, epoch, seq, message);
    // A connection hears direct messages before it can ask for their positions. The history has this one.
    if (t.position && !t.isNew) return t.isBusy || t.on !== current || fill(t);
    // Two connections are open. Direct messages reach the new one even before its handshake ends.
    const hasTwin = old ? t.on === current : next && t.name === '@me';
    const key = hasTwin || copies.length ? JSON.stringify([t.name, message]) : '';
    copies = copies.filter(({ at }) => at > Date.now() - GRACE);
    const index = copies.findLastIndex((copy) => copy.key === key && copy.conn !== conn);
    if (index >= 0) return copies.splice(index, 1);
    if (hasTwin) copies.push({ key, conn, at: Date.now() });
    if (t.name === '@me' && (t.isBusy || t.on !== current)) t.early.push(message);
    else deliver(t, message);
  }

  function offer(t, epoch, seq, message) {
    if (t.position) {
      // The names of epochs rise. A topic that began anew is asked for all that it has.
      if (epoch !== t.position.epoch) return epoch > t.position.epoch && fill(t);
      if (seq <= t.position.seq) {
        // A message that was published in the moment of the first subscribe may come after its ack.
        if (t.isNew && seq > t.heard) deliver(t, message);
        return;
      }
    }
    t.held.set(seq, message);
    drain(t);
    if (t.position || !t.isJoined) return;
    // The topic has begun to keep its messages. The server says where it is.
    t.isChanged = true;
    sync();
  }

  /** Delivers what follows on the position. */
  function drain(t) {
    for (let seq; t.position && t.held.has((seq = t.position.seq + 1)); ) {
      const message = t.held.get(seq);
      t.held.delete(seq);
      t.position = { epoch: t.position.epoch, seq };
      deliver(t, message);
    }
    watch(t);
  }

  function deliver(t, message) {
    if (message.isHole) return;
    t.heard = Math.max(t.heard, message.seq ?? 0);
    for (const listener of [...t.listeners]) {
      if (listener.late) listener.late.push(message);
      else if (t.listeners.has(listener)) call(listener.handler, message);
    }
  }

  /** Goes on from a position, after what is held before it. */
  function jump(t, position) {
    const isPast = ([seq, message]) => seq <= position.seq || (message.epoch ?? position.epoch) !== position.epoch;
    const past = [...t.held].filter(isPast).sort(([a], [b]) => a - b);
    t.position = position;
    t.goal = 0;
    for (const [seq, message] of past) {
      t.held.delete(seq);
      deliver(t, message);
    }
    drain(t);
  }

  function gap(t, position, reason) {
    emit('gap', { topic: t.name, from: t.position, to: position, reason });
    if (position) jump(t, position);
  }

  /** Goes on without positions, because the topic does not keep its messages. */
  function forgo(t, reason) {
    if (reason) gap(t, undefined, reason);
    jump(t, { seq: Infinity });
    t.position = undefined;
  }

  /** Asks for what is missing, unless it comes by itself in time. */
  function watch(t) {
    if (t.position && !t.held.size && t.goal <= t.position.seq) {
      clearTimeout(t.timer);
      t.timer = undefined;
      t.tries = 0;
    } else if (t.position && !t.timer && !t.isBusy && t.on === current) {
      t.timer = setTimeout(fill, HOLD * 2 ** t.tries, t);
    }
  }

  function isBehind(t, position) {
    if (!t?.position) return;
    if (position.epoch !== t.position.epoch) return offer(t, position.epoch, position.seq);
    t.goal = Math.max(t.goal, position.seq);
    watch(t);
  }

  async function fill(t) {
    if (t.isFilling) return;
    t.isFilling = true;
    const from = t.position;
    const page = await put(newId(), {
      type: 'history',
      topic: t.name,
      after: from,
      limit: 1000,
      id: newId(),
    }).catch((error) => error);
    t.isFilling = false;
    t.timer = undefined;
    if (topics.get(t.name) !== t || !t.position) return;
    if (!page.messages) return forgo(t, page.code);
    if (page.epoch > t.position.epoch) gap(t, { epoch: page.epoch, seq: 0 }, 'expired');
    for (const message of page.messages) {
      if (message.seq > t.position.seq + 1) gap(t, { epoch: page.epoch, seq: message.seq - 1 }, 'expired');
      offer(t, page.epoch, message.seq, read(t.name, page.epoch, message));
    }
    if (page.more) return fill(t);
    t.tries = t.position === from ? t.tries + 1 : 0;
    const seq = t.held.size ? Math.min(...t.held.keys()) - 1 : t.goal;
    if (t.tries >= TRIES && seq > t.position.seq) gap(t, { epoch: t.position.epoch, seq }, 'expired');
    watch(t);
  }

  /** Brings the subscriptions on the current connection in line with the listeners. */
  function sync() {
    if (!current) return;
    const wanted = [];
    for (const t of topics.values()) {
      if (t.isBusy || t.pause) continue;
      const isOn = t.on === current && !t.isChanged;
      if (t.listeners.size) isOn || wanted.push(t);
      else if (t.on === current && t.name !== '@me') leave(t, current);
      else topics.delete(t.name);
    }
    for (const t of wanted.filter((t) => t.isAlone)) subscribe([t], current);
    subscribe(
      wanted.filter((t) => !t.isAlone),
      current,
    );
    if (old && !old.isRetired && [...topics.values()].every((t) => t.on === current && !t.isBusy)) {
      const conn = old;
      conn.isRetired = true;
      after(conn, GRACE, () => end(conn));
    }
  }

  /** One frame for all topics: a connection that comes back resumes with one invocation. */
  function subscribe(list, conn) {
    if (!list.length) return;
    const froms = list.map(({ position }) => position);
    const entries = list.map((t) => ({
      topic: t.name,
      batch: true,
      ...(t.position ? { after: t.position } : t.last ? { last: t.last } : { positions: true }),
      ...Object.assign({}, ...extras(t, 'fields')),
    }));
    const frame = { type: 'subscribe', ...(list.length > 1 ? { topics: entries } : entries[0]) };
    if (list.length > SUBSCRIBED || (list.length > 1 && sizeOf(frame) > frameLimit)) {
      subscribe(list.splice(list.length >> 1), conn);
      return subscribe(list, conn);
    }
    for (const t of list) {
      t.isBusy = true;
      t.isChanged = false;
      t.on = conn;
    }
    const done = (frame) => {
      const answers = frame.topics ?? list.map(() => frame);
      // Only data frames of topics with history name their topic. The others need an id of their own.
      const plain = list.filter((_, index) => !answers[index].code && !answers[index].epoch);
      const isWrong = !frame.topics && frame.code && !frame.temporary;
      const alone = list.length < 2 ? [] : isWrong ? list : plain.length > 1 ? plain : [];
      for (const t of list) t.isBusy = false;
      if (plain.length === 1) conn.named.set(id, plain[0]);
      const busy = list.filter((_, index) => answers[index].temporary);
      if (busy.length) postpone(busy);
      list.forEach((t, index) => {
        t.isAlone ||= alone.includes(t);
        if (alone.includes(t)) t.on = undefined;
        else if (!answers[index].temporary) subscribed(t, froms[index], answers[index]);
      });
      sync();
    };
    const lost = () => {
      for (const t of list) {
        t.isBusy = false;
        if (t.on === conn) t.on = undefined;
      }
      sync();
    };
    const id = ask(conn, frame, done, lost, ({ topic, epoch, messages }) => {
      const t = topics.get(topic);
      if (t) for (const message of messages) offer(t, epoch, message.seq, read(topic, epoch, message));
    });
    if (list.length === 1) conn.named.set(id, list[0]);
  }

  /** Subscribes to these topics a little later, in one frame again. */
  function postpone(list) {
    const timer = setTimeout(() => {
      for (const t of list) t.pause = undefined;
      sync();
    }, backOff(list[0].errors));
    for (const t of list) Object.assign(t, { on: undefined, pause: timer, errors: t.errors + 1 });
  }

  function subscribed(t, from, answer) {
    const { code, epoch, seq, recovered } = answer;
    if (code) t.on = undefined;
    t.errors = 0;
    if (code === 'no_history' && (t.position || t.last)) {
      // The next subscribe asks for less.
      forgo(t, t.position && code);
      t.last = undefined;
      return;
    }
    if (code) {
      const error = errorOf(answer);
      // Those who listen to messages alone are asked for once more, without the others.
      extras(t, 'lost', error);
      let isMixed;
      for (const listener of t.listeners) if (listener.extra) isMixed = t.listeners.delete(listener);
      if (code === 'no_presence' || (isMixed && t.listeners.size)) return;
      topics.delete(t.name);
      return drop(t, error);
    }
    const position = epoch && { epoch, seq };
    if (t.home !== t.on) t.isNew = !from && !t.last;
    // An old connection heard everything until this moment, if it is still there. So did this one, if it asks again.
    const isSure = old || t.home === t.on;
    t.home = t.on;
    if (!position) {
      forgo(t, (from || (t.isJoined && !isSure)) && 'no_history');
    } else if (from && recovered) {
      t.goal = Math.max(t.goal, seq);
      if (!isSure) emit('recovered', { topic: t.name, from, to: position });
      drain(t);
    } else if (from || t.isJoined) gap(t, position, 'expired');
    else jump(t, position);
    t.isJoined = true;
    const early = t.early.splice(0);
    if (!position || !(from || t.last)) for (const message of early) deliver(t, message);
    const result = { history: Boolean(position), recovered: from && recovered === true };
    for (const listener of t.listeners) listener.late ? listener.begin?.() : listener.resolve(result);
    extras(t, 'joined');
  }

  function leave({ name, timer }, conn) {
    clearTimeout(timer);
    // A further listener begins anew.
    const t = { ...fresh(name), isBusy: true };
    topics.set(name, t);
    const failed = () => {
      t.isBusy = false;
      t.on = t.listeners.size ? undefined : conn;
      sync();
    };
    const done = ({ temporary }) => {
      if (temporary) return setTimeout(failed, backOff(t.errors++));
      t.isBusy = false;
      sync();
    };
    ask(conn, { type: 'unsubscribe', topic: name }, done, failed);
  }

  /** Ends a topic whose subscription the server refused, or whose client is closed. */
  function drop(t, error) {
    clearTimeout(t.timer);
    clearTimeout(t.pause);
    for (const listener of t.listeners) listener.reject(error);
    extras(t, 'lost', error);
    if (state !== 'closed') emit('error', { topic: t.name, error });
  }

  /** Asks what listens to more than messages, as presence.js does. What spoke last comes last. */
  const extras = (t, what, about) =>
    [...t.listeners]
      .filter(({ extra }) => extra)
      .sort((a, b) => a.extra.at - b.extra.at)
      .map(({ extra }) => extra[what](about));

  const fresh = (name) => ({
    name,
    listeners: new Set(),
    held: new Map(),
    seen: new Set(),
    early: [],
    goal: 0,
    heard: 0,
    tries: 0,
    errors: 0,
    pinged: 0,
  });

  function listen(name, handler, { last, after: position, extra } = {}) {
    const t = topics.get(name) ?? fresh(name);
    topics.set(name, t);
    const listener = { handler, extra };
    // One frame cannot ask for two positions, and the first listener is the one that it asks for.
    const isOther = (t.position || t.last) && JSON.stringify(t.position) !== JSON.stringify(position);
    const ready = new Promise((resolve, reject) => Object.assign(listener, { resolve, reject }));
    ready.catch(() => {});
    if (state === 'closed') listener.reject(new SwitchboardError('closed', 'The client is closed.'));
    else if ((last || position) && (t.isJoined || t.on || isOther)) catchUp(t, listener, last, position);
    else if (t.isJoined) listener.resolve({ history: Boolean(t.position) });
    else {
      t.position ??= position && { epoch: position.epoch, seq: position.seq };
      t.last = Math.max(t.last ?? 0, last ?? 0);
    }
    t.listeners.add(listener);
    // Its fields are not in the frame that has subscribed.
    t.isChanged ||= Boolean(extra);
    // A handler that is removed in the same breath costs no frame, and many topics share one.
    queueMicrotask(sync);
    return {
      ready,
      unsubscribe() {
        if (!t.listeners.delete(listener)) return;
        t.isChanged ||= Boolean(extra);
        queueMicrotask(sync);
      },
      get position() {
        return t.position;
      },
    };
  }

  /** Gives a further listener of a topic the history that it asks for, and then what came meanwhile. */
  async function catchUp(t, listener, last, from) {
    listener.late = [];
    // What the history does not have yet has to come live.
    if (!t.isJoined) await new Promise((resolve) => (listener.begin = resolve));
    const found = [];
    let position = from;
    let recovered = from && true;
    let page;
    try {
      do {
        page = await history(t.name, from ? { after: position } : { before: position, limit: last - found.length });
        found.push(...page.messages);
        position = { epoch: page.epoch, seq: page.seq ?? found.at(-1)?.seq };
        recovered &&= page.recovered;
      } while (page.more && (from || found.length < last));
    } catch (error) {
      if (error.code !== 'no_history') {
        listener.reject(error);
        t.listeners.delete(listener);
        return sync();
      }
      page = undefined;
      recovered &&= false;
    }
    const isLive = ({ epoch, seq }) => seq > t.position?.seq && epoch === t.position.epoch;
    const all = new Map(
      [...found, ...listener.late]
        .filter((message) => !message.isHole && !isLive(message))
        .map((message) => [message.seq ? message.epoch + message.seq : message, message]),
    );
    listener.late = undefined;
    const inOrder = (a, b) => (a.epoch > b.epoch) - (a.epoch < b.epoch) || a.seq - b.seq;
    for (const message of [...all.values()].sort(inOrder)) {
      if (t.listeners.has(listener)) call(listener.handler, message);
    }
    listener.resolve({ history: Boolean(page), recovered });
  }

  // ---- The application's side --------------------------------------------------------------------------------------

  const stops = ['online', 'offline', 'pageshow', 'visibilitychange'].map((name) => {
    globalThis.addEventListener?.(name, wake);
    return () => globalThis.removeEventListener?.(name, wake);
  });

  queueMicrotask(() => {
    if (state === 'closed') return;
    emit('connecting', { attempt: 1, delay: 0 });
    open();
  });

  return {
    get state() {
      return state;
    },
    on(name, handler) {
      const all = handlers.get(name) ?? new Set();
      handlers.set(name, all.add(handler));
      return () => all.delete(handler);
    },
    topic: (name) => ({
      name,
      subscribe: (handler, range) => listen(name, handler, range),
      ask: (frame) => put(`${name} members`, { type: 'presence', topic: name, ...frame, id: newId() }),
      publish: (message, more) => post(name, { type: 'message', topic: name, message }, more),
      // The ack has the number of the last message, and the others have those before it.
      publishAll: (messages, more) =>
        post(name, { type: 'message', topic: name, messages }, more, ({ seq, ...ack }) =>
          messages.map((_, index) => (seq ? { ...ack, seq: seq - messages.length + 1 + index } : ack)),
        ),
      history: async (range) => {
        const { epoch, messages, more = false } = await history(name, range);
        return { epoch, messages: messages.filter((message) => !message.isHole), more };
      },
    }),
    send: (userId, body, more) => post(`@${userId}`, { action: 'sendMessage', destinationUserId: userId, body }, more),
    wake,
    close: () => close(),
  };
}
