// One connection for all tabs of a browser. shared.d.ts describes it.
import { connect, SwitchboardError } from './index.js';

const plain = ({ code, message, temporary, requestId }) => ({ code, message, temporary, requestId });
const errorOf = (it) => new SwitchboardError(it.code, it.message, it);
/** What a tab sends goes to another tab, perhaps again later. So it is what JSON makes of it, as for the server. */
const copyOf = (frame) => JSON.parse(JSON.stringify(frame));
/** Whether a message or a position comes after a position. The names of epochs rise. */
const isAfter = (one, position) =>
  one.epoch === position.epoch ? one.seq > position.seq : one.epoch > position.epoch;
const newId = () => Math.random().toString(36).slice(2) + Math.random().toString(36).slice(2, 8);

/** Asks the client of the tab that has the connection, for all tabs. `tell` sends to one tab, or to all. */
function host(client, lock, signal, tell) {
  /** What each tab listens to, by key. */
  const tabs = new Map();

  function meet(tab) {
    if (tabs.has(tab)) return;
    tabs.set(tab, new Map());
    // A tab has a lock as long as it lives.
    const left = navigator.locks.request(`${lock} ${tab}`, { signal }, () => {
      for (const subscription of tabs.get(tab).values()) subscription.unsubscribe();
      tabs.delete(tab);
    });
    left.catch(() => {});
  }

  // Each tab hears of a refused subscription for itself.
  for (const name of ['connecting', 'connected', 'closed', 'recovered', 'gap']) {
    client.on(name, (event) => {
      // The end of this tab is not the end of the others.
      if (event.code !== 'closed') tell(undefined, { op: 'event', name, event, state: client.state });
    });
  }

  // The server may refuse a subscription later, when a connection asks for it again.
  client.on('error', ({ topic, error }) => {
    for (const [tab, subscriptions] of tabs) {
      for (const [key, { name }] of subscriptions) if (name === topic) refused(tab, key, error);
    }
  });

  function refused(tab, key, error) {
    tabs.get(tab)?.get(key)?.unsubscribe();
    tabs.get(tab)?.delete(key);
    tell(tab, { op: 'failed', key, error: plain(error) });
  }

  /** Hands on what presence.js asks for in a tab, and what comes of it. */
  function extraOf(tab, key, fields, at) {
    let said;
    const hook = (name, more) => tell(tab, { op: 'extra', key, hook: name, ...more });
    const extra = {
      at,
      words: fields,
      fields: () => (said = extra.words),
      joined: () => hook('joined', { about: said }),
      changed: (about) => hook('changed', { about }),
      lost: (error) => hook('lost', { error: error && plain(error) }),
    };
    return extra;
  }

  return ({ tab, op, key, name, content, range, id, fields, at, of }) => {
    meet(tab);
    const subscriptions = tabs.get(tab);
    const topic = client.topic(name);
    const done = (result) => tell(tab, { op: 'done', key, result, position: subscriptions.get(key)?.position });
    const failed = (error) => refused(tab, key, error);
    if (op === 'hello') tell(tab, { op: 'leader', state: client.state });
    if (op === 'subscribe' && !subscriptions.has(key)) {
      const extra = fields && extraOf(tab, key, fields, at);
      const hear = (message) => extra || tell(tab, { op: 'message', key, message });
      const subscription = topic.subscribe(hear, extra ? { extra } : range);
      subscriptions.set(key, Object.assign(subscription, { name, extra }));
      subscription.ready.then(done, failed);
    }
    if (op === 'ask') {
      const extra = subscriptions.get(of)?.extra;
      const said = (result) => {
        // The next subscribe frame says this, too.
        if (extra && 'data' in content) Object.assign(extra, { at, words: { ...extra.words, ...content } });
        done(result);
      };
      topic.ask(content).then(said, failed);
    }
    if (op === 'unsubscribe') {
      subscriptions.get(key)?.unsubscribe();
      subscriptions.delete(key);
    }
    if (op === 'history') topic.history(range).then(done, failed);
    if (op === 'publish' || op === 'publishAll') topic[op](content, { id }).then(done, failed);
    if (op === 'send') client.send(name, content, { id }).then(done, failed);
    if (op === 'wake') client.wake();
  };
}

export function connectShared(url, { name = url, buffer = 1000, ...options } = {}) {
  const lock = `switchboard ${name}`;
  const channel = new BroadcastChannel(lock);
  const me = newId();
  const handlers = new Map();
  /** What waits for an answer, and the subscriptions, in order. A tab that takes over is asked for all of it again. */
  const requests = new Map();
  let state = 'connecting';
  /** The tab that has the connection. */
  let leader;
  /** Where this is that tab: its client, and what serves it. */
  let client, serve;
  const end = new AbortController();
  let release = () => {};

  const emit = (event, about) => handlers.get(event)?.forEach((handler) => queueMicrotask(() => handler(about)));

  /** Sends to the tab with the connection, which may be this one. */
  function ask(frame) {
    if (serve) serve({ tab: me, ...frame });
    else if (leader) channel.postMessage({ to: leader, tab: me, ...frame });
  }

  function hear({ from, to, op, key, state: now, name, event, message, result, position, error, hook, about }) {
    if (state === 'closed') return;
    if (op === 'leader') {
      // It answers a greeting, and says so by itself. An answer that is late may come from a tab that is closed.
      if (from === leader || (to && leader)) return;
      leader = from;
      become(now);
      for (const request of requests.values()) {
        request.isReady = false;
        request.extra?.lost();
        ask(request.frame());
      }
      return;
    }
    if (from !== leader) return;
    if (op === 'event') {
      if (!event.topic) return become(now, event);
      // Each subscription that begins anew says for itself how that went.
      const of = [...requests.values()].filter((it) => it.name === event.topic && it.handler && it.isReady);
      // The topic goes on from there, also if that is an older position.
      if (name === 'gap') for (const request of of) Object.assign(request, { from: undefined, position: event.to });
      if (of.length) emit(name, event);
      return;
    }
    const request = requests.get(key);
    if (!request) return;
    if (op === 'message') {
      if (message.seq && message.topic === request.name) {
        // Another tab may have asked for older messages.
        if (request.from && !isAfter(message, request.from)) return;
        const { epoch, seq } = message;
        if (!request.position || isAfter(message, request.position)) request.position = { epoch, seq };
      }
      queueMicrotask(() => requests.has(key) && request.handler(message));
    } else if (op === 'done') request.done(result, position);
    else if (op === 'extra') {
      if (error) requests.delete(key);
      request.extra[hook](error ? errorOf(error) : about);
    } else {
      requests.delete(key);
      const reason = errorOf(error);
      request.reject(reason);
      if (request.handler) emit('error', { topic: request.name, error: reason });
    }
  }

  /** Without an event, another tab has got the connection. */
  function become(now, event) {
    const isNew = event || now !== state;
    const reason = 'Another tab takes the connection over.';
    state = now;
    if (now === 'closed') stop(new SwitchboardError(event.code, event.reason));
    if (isNew) emit(now, event ?? (now === 'connected' ? { rotated: false } : { attempt: 1, delay: 0, reason }));
  }

  function stop(error) {
    end.abort();
    release();
    client?.close();
    channel.close();
    for (const { reject, extra } of requests.values()) {
      reject(error);
      extra?.lost(error);
    }
    requests.clear();
  }

  /** Makes a request that lives until its answer, or for ever if it has a handler. */
  function request(frame, more = {}) {
    const key = newId();
    let resolve, reject;
    const promise = new Promise((...both) => ([resolve, reject] = both));
    promise.catch(() => {});
    const copy = copyOf(frame);
    const it = { name: frame.name, frame: () => ({ ...copy, key }), resolve, reject, ...more };
    it.done ??= (result) => {
      requests.delete(key);
      resolve(result);
    };
    if (state === 'closed') reject(new SwitchboardError('closed', 'The client is closed.'));
    else if (frame.id && [...requests.values()].filter(({ isMessage }) => isMessage).length >= buffer)
      reject(new SwitchboardError('buffer_full', `${buffer} messages wait already, and no more are kept.`));
    else {
      requests.set(key, it);
      ask(it.frame());
    }
    return { key, promise, it };
  }

  function post(op, name, content, { id = newId() } = {}) {
    const { key, promise } = request({ op, name, content, id }, { isMessage: true });
    const status = !requests.has(key) ? 'dropped' : state === 'connected' ? 'sent' : 'buffered';
    return Object.assign(promise, { id, status });
  }

  function listen(name, handler, { last, after, extra } = {}) {
    let hasJoined = false;
    const done = (result, position) => {
      it.isReady = true;
      it.position = position;
      it.resolve(result);
      // The subscription of presence.js hears no messages.
      if (extra) return;
      const { from } = it;
      const isWhole = from && result.recovered && position && !isAfter(from, position);
      // The server does not know this position, so whatever comes is new.
      if (!isWhole) it.from = undefined;
      const reason = result.history ? 'expired' : 'no_history';
      const about = { topic: name, from, to: position };
      if (hasJoined) emit(isWhole ? 'recovered' : 'gap', isWhole ? about : { ...about, reason });
      hasJoined = true;
    };
    const frameOf = (range) =>
      copyOf({ op: 'subscribe', name, ...(extra ? { fields: extra.fields(), at: extra.at } : { range }) });
    // The last subscription goes on from the position `from`.
    const more = { handler: extra ? undefined : handler, extra, done, position: after, from: after };
    const { key, promise, it } = request(frameOf({ last, after }), more);
    it.frame = () => {
      it.from = it.position;
      return { ...frameOf(it.from ? { after: it.from } : hasJoined ? {} : { last }), key };
    };
    return {
      ready: promise,
      unsubscribe() {
        if (requests.delete(key)) ask({ op: 'unsubscribe', key });
      },
      get position() {
        return it.position;
      },
    };
  }

  /** A tab lives as long as it has its own lock. Then it waits for the lock of the one that has the connection. */
  function live() {
    if (state === 'closed') return;
    channel.onmessage = ({ data }) => {
      const isForMe = !data.to || data.to === me;
      if (isForMe && data.tab) serve?.(data);
      else if (isForMe) hear(data);
    };
    channel.postMessage({ op: 'hello', tab: me });
    // An address that no client takes ends this one, too.
    const failed = ({ message }) => state === 'closed' || become('closed', { code: 'refused', reason: message });
    navigator.locks.request(lock, { signal: end.signal }, lead).catch(failed);
    return new Promise((resolve) => (release = resolve));
  }

  function lead() {
    if (state === 'closed') return;
    client = connect(url, { ...options, buffer: Infinity });
    serve = host(client, lock, end.signal, (to, frame) => {
      // What fails with this client does not concern the others.
      if (state === 'closed') return;
      const told = { ...frame, from: me, to };
      if (to !== me) channel.postMessage(told);
      if (!to || to === me) queueMicrotask(() => hear(told));
    });
    const told = { op: 'leader', from: me, state: client.state };
    channel.postMessage(told);
    hear(told);
    return new Promise((resolve) => end.signal.addEventListener('abort', resolve));
  }

  navigator.locks.request(`${lock} ${me}`, { signal: end.signal }, live).catch(() => {});

  return {
    get state() {
      return state;
    },
    on(event, handler) {
      if (!handlers.has(event)) handlers.set(event, new Set());
      handlers.get(event).add(handler);
      return () => handlers.get(event).delete(handler);
    },
    topic: (topic) => ({
      name: topic,
      subscribe: (handler, range) => listen(topic, handler, range),
      publish: (message, more) => post('publish', topic, message, more),
      publishAll: (messages, more) => post('publishAll', topic, messages, more),
      history: (range) => request({ op: 'history', name: topic, range }).promise,
      ask(content, extra) {
        const [of] = [...requests].find(([, it]) => it.extra === extra) ?? [];
        return request({ op: 'ask', name: topic, content, of, at: extra?.at }).promise;
      },
    }),
    send: (userId, body, more) => post('send', userId, body, more),
    wake: () => ask({ op: 'wake' }),
    close() {
      if (state === 'closed') return;
      become('closed', { code: 'closed', reason: 'The application closed the client.' });
    },
  };
}
