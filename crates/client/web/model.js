// What the page knows: conversations, messages, what is unread. It knows nothing of the document.
import { connect } from './client.js';
import { presence } from './presence.js';

/** How many of the newest messages a conversation begins with, and how many more each step back brings. */
const PAGE = 50;
/** How many of one's own direct messages this browser keeps for each person, because no server has them. */
const KEPT = 200;

/** Whether two messages have the same place in a history. */
const isSame = (one, other) => other.seq !== undefined && one.seq === other.seq && one.epoch === other.epoch;

export class Chat extends EventTarget {
  conversations = new Map();
  open;
  #storage;
  #end = new AbortController();

  constructor({ url, user, token, storage }) {
    super();
    this.user = user;
    this.#storage = { key: `switchboard ${url} ${user}`, in: storage };
    this.client = connect(url, { token });
    for (const name of ['connecting', 'connected', 'closed']) {
      this.client.on(name, (event) => this.#tell('state', { name, ...event }));
    }
    this.client.on('gap', ({ topic, reason }) => {
      this.#note(topic, reason);
      if (reason === 'expired') this.#reread(topic);
    });
    const { names = [], read = {}, sent = {} } = this.#load();
    for (const name of names) this.add(name, read[name], sent[name]);
    if (!names.length) this.add('room.lobby');
    // Direct messages of everybody arrive at one address. The positions that were read are kept for each person.
    this.client.topic('@me').subscribe((message) => this.#direct(message), { last: 100 });
    const merge = (event) => event.key === this.#storage.key && this.#merge();
    addEventListener('storage', merge, { signal: this.#end.signal });
  }

  /** Makes a conversation, unless it exists. A person's name begins with `@`, and a pattern of topics ends with `*`. */
  add(name, read, sent = []) {
    const existing = this.conversations.get(name);
    if (existing) return existing;
    const isPerson = name.startsWith('@');
    const isPattern = !isPerson && name.endsWith('*');
    const conversation = {
      name,
      isPerson,
      isPattern,
      items: [],
      unread: 0,
      read,
      isNew: !read,
      hasOlder: false,
      problem: '',
      history: undefined,
      members: undefined,
      at: Date.now(),
    };
    this.conversations.set(name, conversation);
    for (const { id, data, at } of sent) this.#insert(conversation, { id, data, at, isMine: true, status: 'sent' });
    if (!isPerson) {
      let count = 0;
      const take = (message) => {
        if (message.at !== undefined) count += 1;
        this.#heard(conversation, message);
      };
      const topic = this.client.topic(name);
      // Where no rule tells who is here, this ends by itself, and the messages come all the same.
      if (!isPattern) {
        conversation.presence = presence(topic, (members) => {
          conversation.members = members;
          this.#changed(conversation);
        });
      }
      // A pattern has no newest messages, and nobody is in it.
      const { ready } = (conversation.subscription = topic.subscribe(take, isPattern ? {} : { last: PAGE }));
      ready.then(
        ({ history }) => {
          conversation.history = history;
          conversation.hasOlder = count >= PAGE;
          conversation.isNew = false;
          if (!conversation.read) this.#markRead(conversation);
          this.#changed(conversation);
        },
        (error) => {
          if (error.code === 'closed' || error.code === 'refused') return;
          conversation.problem = error.message;
          this.#changed(conversation);
        },
      );
    }
    this.#save();
    this.#tell('list');
    return conversation;
  }

  /** Ends a conversation: the page listens to its topic no longer. */
  remove(name) {
    this.#drop(name);
    this.#save();
  }

  #drop(name) {
    const { subscription, presence: members } = this.conversations.get(name);
    subscription?.unsubscribe();
    members?.stop();
    this.conversations.delete(name);
    this.#tell('list');
  }

  /** The conversation that is on the screen, or none. What comes in it counts as read. */
  show(name, isSeen) {
    this.open = name;
    this.isSeen = isSeen;
    const conversation = this.conversations.get(name);
    if (conversation && isSeen && conversation.unread) {
      this.#markRead(conversation);
      this.#changed(conversation);
    }
  }

  send(conversation, data) {
    const item = { data, at: Date.now(), isMine: true, status: 'pending' };
    const { client } = this;
    const post = conversation.isPerson
      ? client.send(conversation.name.slice(1), data)
      : client.topic(conversation.name).publish(data);
    item.id = post.id;
    this.#insert(conversation, item);
    this.#changed(conversation);
    post.then(
      ({ epoch, seq, delivered, stored }) => {
        Object.assign(item, { status: 'sent', delivered, isStored: stored });
        if (conversation.isPerson) this.#save();
        else Object.assign(item, { epoch, seq });
        this.#changed(conversation, item);
      },
      (error) => {
        Object.assign(item, { status: 'failed', error: error.message, code: error.code });
        this.#changed(conversation, item);
      },
    );
  }

  /** Takes a message back that was not sent. */
  discard(conversation, item) {
    conversation.items = conversation.items.filter((other) => other !== item);
    this.#changed(conversation);
  }

  async older(conversation) {
    const first = conversation.items.find(({ seq }) => seq);
    if (!first) return;
    const before = { epoch: first.epoch, seq: first.seq };
    const page = await this.client.topic(conversation.name).history({ before, limit: PAGE });
    for (const message of page.messages) this.#insert(conversation, this.#item(message));
    conversation.hasOlder = page.more;
    this.#changed(conversation);
  }

  close() {
    this.#end.abort();
    this.client.close();
  }

  #item({ data, senderId, epoch, seq, at }) {
    return {
      data,
      from: senderId,
      isMine: senderId === this.user,
      epoch,
      seq,
      at: at ?? Date.now(),
      status: 'sent',
    };
  }

  #direct(message) {
    const name = `@${message.senderId}`;
    const conversation = this.conversations.get(name) ?? this.add(name);
    const item = { ...this.#item(message), isMine: false };
    if (conversation.items.some((other) => !other.isMine && isSame(other, item))) return;
    // One's own note to oneself is there already, as the message that was sent.
    if (message.senderId === this.user && conversation.items.some(({ isMine, data }) => isMine && data === item.data))
      return;
    conversation.isNew = false;
    this.#arrived(conversation, item);
  }

  #heard(conversation, message) {
    const item = this.#item(message);
    // The topics of a pattern have numbers of their own, so their messages are in the order in which they came.
    if (conversation.isPattern)
      return this.#arrived(conversation, { ...item, topic: message.topic, epoch: undefined, seq: undefined });
    if (conversation.items.some((other) => (!other.isMine || other.isEchoed) && isSame(other, item))) return;
    const echo = conversation.items.find((other) => {
      if (!other.isMine || other.isEchoed) return false;
      if (other.seq !== undefined) return other.seq === item.seq && other.epoch === item.epoch;
      return (item.isMine || item.from === undefined) && JSON.stringify(other.data) === JSON.stringify(item.data);
    });
    if (!echo) return this.#arrived(conversation, item);
    echo.isEchoed = true;
    if (item.seq === undefined) return;
    Object.assign(echo, { epoch: item.epoch, seq: item.seq });
    this.#sort(conversation);
    this.#see(conversation, item, true);
    this.#changed(conversation, echo);
  }

  #arrived(conversation, item) {
    this.#insert(conversation, item);
    this.#see(conversation, item, item.isMine);
    this.#changed(conversation, item);
  }

  /** Counts a message as unread, unless somebody sees it or has seen it. */
  #see(conversation, { epoch, seq }, isMine) {
    const { read } = conversation;
    const wasRead = read && seq !== undefined && epoch === read.epoch && seq <= read.seq;
    if (conversation.isNew || wasRead || isMine) return;
    conversation.unread += 1;
    if (this.open === conversation.name && this.isSeen) this.#markRead(conversation);
  }

  #markRead(conversation) {
    conversation.unread = 0;
    const last = conversation.items.findLast(
      ({ seq, isMine }) => seq !== undefined && !(conversation.isPerson && isMine),
    );
    if (!last) return;
    conversation.read = { epoch: last.epoch, seq: last.seq };
    this.#save();
  }

  #note(topic, reason) {
    for (const conversation of this.conversations.values()) {
      const text = conversation.isPattern
        ? 'You were disconnected. What was written meanwhile is in the topics themselves, if they keep it.'
        : reason === 'no_history'
          ? 'You were disconnected. This topic does not keep what was written meanwhile.'
          : 'Something may be missing here: the server no longer has it.';
      const isMeant =
        topic === '@me' ? conversation.isPerson && conversation.items.length : conversation.name === topic;
      if (!isMeant || conversation.items.at(-1)?.note === text) continue;
      this.#insert(conversation, { note: text, at: Date.now() });
      this.#changed(conversation);
    }
  }

  /** Reads what the server still has. After a gap the client itself goes on with what is new. */
  async #reread(topic) {
    const page = await this.client.topic(topic).history({ limit: PAGE }).catch(() => ({ messages: [] }));
    for (const message of page.messages.reverse()) {
      const conversation = this.conversations.get(topic);
      if (topic === '@me') this.#direct(message);
      else if (conversation) this.#heard(conversation, message);
    }
  }

  #insert(conversation, item) {
    item.key = `${(this.keys = (this.keys ?? 0) + 1)}`;
    conversation.items.push(item);
    this.#sort(conversation);
  }

  /** Messages of a topic are in the order of their numbers. What has none is where its time puts it. */
  #sort({ items, isPerson }) {
    const isLater = (a, b) => {
      if (!isPerson && a.seq !== undefined && b.seq !== undefined)
        return a.epoch === b.epoch ? a.seq > b.seq : a.epoch > b.epoch;
      if (!isPerson && a.status === 'pending' && b.seq !== undefined) return true;
      return a.at > b.at;
    };
    // Almost all messages come in order, so this looks at the end first.
    for (let index = items.length - 1; index > 0 && isLater(items[index - 1], items[index]); index -= 1) {
      [items[index - 1], items[index]] = [items[index], items[index - 1]];
    }
  }

  #load() {
    try {
      return JSON.parse(this.#storage.in.getItem(this.#storage.key)) ?? {};
    } catch {
      return {};
    }
  }

  #save() {
    if (this.isSaving) return;
    this.isSaving = true;
    setTimeout(() => {
      this.isSaving = false;
      const all = [...this.conversations.values()];
      const sent = all
        .filter(({ isPerson }) => isPerson)
        .map(({ name, items }) => {
          const mine = items.filter(({ isMine, status }) => isMine && status === 'sent').slice(-KEPT);
          return [name, mine.map(({ id, data, at }) => ({ id, data, at }))];
        });
      const read = all
        .filter((conversation) => conversation.read)
        .map((conversation) => [conversation.name, conversation.read]);
      const value = {
        names: all.map(({ name }) => name),
        read: Object.fromEntries(read),
        sent: Object.fromEntries(sent),
      };
      try {
        this.#storage.in.setItem(this.#storage.key, JSON.stringify(value));
      } catch {
        // A full or forbidden storage costs comfort, and nothing else.
      }
    });
  }

  /** Another tab of the same user has written. */
  #merge() {
    const { names = [], read = {}, sent = {} } = this.#load();
    // It may have ended conversations, and this tab would bring them back. The one on the screen stays.
    for (const name of this.conversations.keys()) {
      if (!names.includes(name) && !(name === this.open && this.isSeen)) this.#drop(name);
    }
    for (const name of names) {
      const conversation = this.conversations.get(name) ?? this.add(name, read[name]);
      for (const { id, data, at } of sent[name] ?? []) {
        if (!conversation.items.some((item) => item.id === id))
          this.#insert(conversation, { id, data, at, isMine: true, status: 'sent' });
      }
      const position = read[name];
      const isFurther =
        position && !(conversation.read?.epoch === position.epoch && conversation.read.seq >= position.seq);
      if (isFurther) Object.assign(conversation, { read: position, unread: 0 });
      this.#changed(conversation);
    }
  }

  #changed(conversation, item) {
    this.#tell('change', { conversation, item });
  }

  #tell(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}
