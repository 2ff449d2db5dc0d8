// Who is here: the members of a topic, and what each of them says. presence.d.ts describes it.

/** One connection is one member, and what was said last counts. So each watcher says when it spoke. */
let clock = 0;
const tick = () => (clock = Math.max(clock + 1, Date.now()));

export function presence(topic, handler, { data } = {}) {
  /** What each member says. A topic with more than 1,000 members has only a count. */
  let users = new Map();
  let count = 0;
  /** Whether the list is true. It is false until the first list, and while nobody tells what changes. */
  let isCurrent = false;
  let isOver = false;
  /** Whether the server has taken the subscription on the current connection, and the fields of its frame. */
  let isMember = false;
  let said;
  /** Counts the lists that were asked for: the answer of an older one does not count. */
  let turn = 0;
  /** The changes since the last list was asked for. It may be older than they are. */
  let since = [];
  let resolve, reject;
  const ready = new Promise((...both) => ([resolve, reject] = both));
  ready.catch(() => {});

  const isOther = (one, other) => JSON.stringify(one) !== JSON.stringify(other);

  /** Tells the application what is new, if anything is. `told` are the changes where there is no list. */
  function become(next, total, isTrue, told = { joined: [], left: [], changed: [] }) {
    const before = users;
    const changes =
      next && before
        ? {
            joined: [...next.keys()].filter((user) => !before.has(user)),
            left: [...before.keys()].filter((user) => !next.has(user)),
            changed: [...next.keys()].filter((user) => before.has(user) && isOther(before.get(user), next.get(user))),
          }
        : told;
    const isNew = isTrue !== isCurrent || total !== count || Object.values(changes).some((list) => list.length);
    [users, count, isCurrent] = [next, total, isTrue];
    // An application that throws must not stop the client.
    const event = { topic: topic.name, users, count, isCurrent, ...changes };
    if (isNew) queueMicrotask(() => isOver || handler(event));
  }

  /** The members after a change, and how many they are. The same change may come twice. */
  function apply(list, total, { joined = [], left = [], data: words = {} }) {
    if (!list) return [undefined, total + joined.length - left.length];
    const next = new Map(list);
    for (const user of joined) next.set(user, undefined);
    for (const user of left) next.delete(user);
    for (const [user, word] of Object.entries(words)) if (next.has(user)) next.set(user, word ?? undefined);
    return [next, next.size];
  }

  async function list() {
    const mine = ++turn;
    since = [];
    try {
      const { parts } = await topic.ask({}, extra);
      if (mine !== turn) return;
      const isListed = parts.every((part) => part.users);
      let [next, total] = [isListed ? new Map() : undefined, parts[0].count];
      for (const { users: joined, data: words } of isListed ? parts : []) {
        [next, total] = apply(next, total, { joined, data: words });
      }
      for (const frame of since) [next, total] = apply(next, total, frame);
      become(next, total, isMember);
      resolve();
    } catch (error) {
      reject(error);
      if (mine !== turn) return;
      become(users, count, false);
      throw error;
    }
  }

  /** Tells the server what this user says. If the user is no member yet, the subscribe frame says it. */
  async function say() {
    const before = isMember && turn;
    await topic.ask({ data }, extra).catch((error) => {
      if (error.code !== 'no_member' || before === turn) throw error;
    });
  }

  const extra = {
    at: tick(),
    fields() {
      said = { presence: true, ...(data === undefined ? {} : { data }) };
      return said;
    },
    joined(fields = said) {
      isMember = true;
      list().catch(() => {});
      if (data !== undefined && isOther(fields.data, data)) say().catch(() => {});
    },
    changed(frame) {
      since.push(frame);
      const { joined = [], left = [], data: words = {} } = frame;
      const changed = Object.keys(words).filter((user) => !joined.includes(user));
      if (isCurrent) become(...apply(users, count, frame), true, { joined, left, changed });
    },
    lost(error) {
      if (error) reject(error);
      isMember = false;
      turn += 1;
      become(users, count, false);
    },
  };
  function listen() {
    const subscription = topic.subscribe(() => {}, { extra });
    subscription.ready.catch(reject);
    return subscription;
  }
  let subscription = listen();

  return {
    ready,
    get users() {
      return users;
    },
    get count() {
      return count;
    },
    get isCurrent() {
      return isCurrent;
    },
    async set(value) {
      const before = [data, extra.at];
      data = value ?? undefined;
      extra.at = tick();
      if (data === undefined) {
        // Only a subscribe frame without it ends what a user says.
        const last = subscription;
        subscription = listen();
        return last.unsubscribe();
      }
      await say().catch((error) => {
        if (data === value) [data, extra.at] = before;
        throw error;
      });
    },
    refresh: list,
    stop() {
      isOver = true;
      turn += 1;
      subscription.unsubscribe();
    },
  };
}
