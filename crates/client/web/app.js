// The page: it shows what the model knows, and hands on what the user does.
import { Chat } from './model.js';

const ui = Object.fromEntries([...document.querySelectorAll('[id]')].map((element) => [element.id, element]));
const query = new URLSearchParams(location.search);
const url = query.get('url') ?? `ws://${location.hostname}:3001/dev`;
const token = query.get('token');

/** The most messages of one conversation that are in the document. Older ones come on request. */
const SHOWN = 300;
/** A longer text is shown in part, until somebody asks for all of it. */
const LONG = 2000;
/** So many members of a topic are named. */
const NAMED = 8;
/** Reconnects that are faster are not worth a word. */
const PATIENCE = 1200;

let chat;
let shown = SHOWN;
let stateTimer;
/** The elements of the messages on the screen, by key. */
let rows = new Map();

// ---- Words -------------------------------------------------------------------------------------------------------

const time = new Intl.DateTimeFormat(undefined, { hour: 'numeric', minute: '2-digit' });
const day = new Intl.DateTimeFormat(undefined, { weekday: 'long', day: 'numeric', month: 'long' });
const short = new Intl.DateTimeFormat(undefined, { day: 'numeric', month: 'short' });
const dayOf = (at) => new Date(at).toDateString();
const textOf = (data) => (typeof data === 'string' ? data : JSON.stringify(data));
const titleOf = ({ name, isPerson }) => (isPerson ? name.slice(1) : name);

function when(at) {
  return dayOf(at) === dayOf(Date.now()) ? time.format(at) : short.format(at);
}

function nameOfDay(at) {
  if (dayOf(at) === dayOf(Date.now())) return 'Today';
  if (dayOf(at) === dayOf(Date.now() - 864e5)) return 'Yesterday';
  return day.format(at);
}

function aboutOf({ name, isPerson, isPattern, history, members, problem }) {
  if (problem) return 'You are not listening here.';
  if (name === `@${chat.user}`) return 'Notes to yourself, on all of your devices';
  if (isPerson) return 'Direct messages, on all of their devices';
  if (isPattern) return `All topics that begin with “${name.slice(0, -1)}”`;
  if (members?.isCurrent) {
    const others = [...(members.users?.keys() ?? [])].filter((user) => user !== chat.user).sort();
    const names = [...(members.users?.has(chat.user) ? ['you'] : []), ...others];
    const shown = names.slice(0, NAMED).join(', ');
    return `${members.count} here${shown && `: ${shown}`}${names.length > NAMED ? ' …' : ''}`;
  }
  if (history === undefined) return 'Topic';
  return history ? 'Topic that keeps its messages' : 'Live topic: it keeps nothing, and does not say who writes';
}

// ---- Small parts -------------------------------------------------------------------------------------------------

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function avatar(name, isTopic) {
  let hash = 7;
  for (const char of name) hash = (hash * 31 + char.codePointAt(0)) % 3600;
  const letter = isTopic ? '#' : ([...name][0] ?? '?');
  const made = element('span', `avatar${isTopic ? ' topic' : ''}`, letter);
  made.style.setProperty('--hue', `${hash % 360}`);
  made.setAttribute('aria-hidden', 'true');
  return made;
}

// ---- The list of conversations -----------------------------------------------------------------------------------

function renderList() {
  // A note about the connection is no news.
  const latest = ({ items, at }) => items.findLast((item) => !item.note)?.at ?? at;
  const sorted = [...chat.conversations.values()].sort((a, b) => latest(b) - latest(a));
  const focused = document.activeElement?.dataset?.name;
  ui.list.replaceChildren(...sorted.map(listRow));
  if (focused !== undefined) [...ui.list.querySelectorAll('a')].find((link) => link.dataset.name === focused)?.focus();
  const unread = sorted.reduce((sum, conversation) => sum + conversation.unread, 0);
  document.title = unread ? `(${unread}) Switchboard` : 'Switchboard';
}

function listRow(conversation) {
  const { name, unread, items, problem } = conversation;
  const link = element('a');
  link.href = `#${encodeURIComponent(name)}`;
  link.dataset.name = name;
  if (chat.open === name) link.setAttribute('aria-current', 'page');
  const last = items.findLast((item) => !item.note);
  const title = element('span', 'name', titleOf(conversation));
  title.dir = 'auto';
  const preview = element(
    'span',
    'last',
    problem || (last ? `${last.isMine ? 'You: ' : ''}${textOf(last.data).slice(0, 120)}` : 'No messages yet'),
  );
  link.append(avatar(titleOf(conversation), !conversation.isPerson), title, preview);
  if (last) link.append(element('time', '', when(last.at)));
  if (unread) {
    const badge = element('span', 'unread', unread > 99 ? '99+' : `${unread}`);
    badge.append(element('span', 'hidden', ' unread'));
    link.append(badge);
  }
  const row = element('li');
  row.append(link);
  return row;
}

// ---- The open conversation ---------------------------------------------------------------------------------------

const current = () => chat?.conversations.get(chat.open);
const isAtEnd = () => ui.scroll.scrollHeight - ui.scroll.scrollTop - ui.scroll.clientHeight < 80;

/** Whether the newest message stays in sight. A new message, a banner and a keyboard change the heights. */
let isSticky = true;
function toEnd() {
  isSticky = true;
  ui.scroll.scrollTop = ui.scroll.scrollHeight;
}

function renderTalk() {
  const conversation = current();
  ui.compose.hidden = !conversation || Boolean(conversation.problem) || conversation.isPattern;
  // The history brings back everybody who has written. So only a name that never answered can be removed.
  const isSilent = conversation?.isPerson && conversation.items.every(({ isMine, note }) => isMine || note);
  ui.remove.hidden = !conversation || (conversation.isPerson && !isSilent);
  ui.remove.textContent = isSilent || conversation?.problem ? 'Remove' : 'Leave topic';
  ui.title.textContent = conversation ? titleOf(conversation) : '';
  ui.about.textContent = conversation ? aboutOf(conversation) : '';
  ui.older.hidden = !conversation?.hasOlder && !(conversation?.items.length > shown);
  ui.empty.textContent = emptyWords(conversation);
  const items = conversation?.items.slice(-shown) ?? [];
  const wanted = [];
  let before;
  for (const item of items) {
    if (!before || dayOf(before.at) !== dayOf(item.at)) {
      wanted.push({ key: `day ${item.key}`, stamp: '', make: () => element('li', 'day', nameOfDay(item.at)) });
      before = undefined;
    }
    const sender = (other) => (other.note ? '' : `${other.topic} ${other.isMine ? 'me' : `@${other.from}`}`);
    const isFirst = !before || sender(before) !== sender(item) || item.at - before.at > 5 * 60_000;
    const stamp = [item.status, item.delivered, item.error, isFirst].join();
    wanted.push({ key: item.key, stamp, make: () => messageRow(conversation, item, isFirst) });
    before = item;
  }
  place(wanted);
  if (isSticky) toEnd();
}

/** Brings the list of messages in line, and touches only what has changed. */
function place(wanted) {
  const kept = new Map();
  for (const { key, stamp, make } of wanted) {
    const row = rows.get(key);
    kept.set(key, row?.stamp === stamp ? row : { stamp, element: make() });
  }
  for (const [key, row] of rows) if (kept.get(key) !== row) row.element.remove();
  let next = ui.messages.firstChild;
  for (const row of kept.values()) {
    if (row.element === next) next = next.nextSibling;
    else ui.messages.insertBefore(row.element, next);
  }
  rows = kept;
}

function emptyWords(conversation) {
  if (!conversation)
    return 'Choose a conversation, or start one: a topic such as room.tea, or @ and the name of somebody.';
  if (conversation.problem) return conversation.problem;
  if (conversation.items.length) return '';
  if (conversation.isPattern) return 'Nothing here yet. What is written in these topics comes here, and you answer there.';
  return conversation.isPerson
    ? `Nothing here yet. ${titleOf(conversation)} gets your message even when away.`
    : 'Nothing here yet. Say hello.';
}

function messageRow(conversation, item, isFirst) {
  if (item.note) {
    const note = element('li', 'note');
    note.append(element('span', '', item.note));
    return note;
  }
  const { isMine, status, data, from, at } = item;
  const row = element('li', [isFirst && 'first', isMine && 'mine', status].filter(Boolean).join(' '));
  const who = isMine ? 'You' : (from ?? 'Someone');
  if (!isMine && isFirst) {
    const name = element('span', 'from', who);
    name.dir = 'auto';
    row.append(avatar(from ?? '?', false), name);
  } else row.append(element('span', 'hidden', `${who}: `));
  const bubble = element('div', 'bubble');
  const text = textOf(data);
  const isLong = text.length > LONG;
  const body = element(typeof data === 'string' ? 'span' : 'code', '', isLong ? `${text.slice(0, LONG / 2)}… ` : text);
  body.dir = 'auto';
  if (item.topic && isFirst) {
    const place = element('a', 'place', item.topic);
    place.href = `#${encodeURIComponent(item.topic)}`;
    bubble.append(place);
  }
  const clock = element('time', '', time.format(at));
  clock.dateTime = new Date(at).toISOString();
  clock.title = new Date(at).toLocaleString();
  if (isMine) {
    const isWaiting = item.isStored && !item.delivered;
    const fate = { pending: ' · sending', sent: isWaiting ? ' · kept for later' : ' ✓', failed: '' }[status];
    clock.append(fate);
    if (status === 'sent') {
      const words = item.isStored
        ? 'kept until they are back'
        : item.delivered === undefined
          ? 'sent'
          : `reached ${item.delivered} connection${item.delivered === 1 ? '' : 's'}`;
      clock.title += `: ${words}`;
    }
  }
  bubble.append(body);
  if (isLong) {
    const all = element('button', 'all', `Show all ${text.length.toLocaleString()} characters`);
    all.onclick = () => {
      body.textContent = text;
      all.remove();
    };
    bubble.append(all);
  }
  bubble.append(clock);
  row.append(bubble);
  if (status === 'failed') row.append(trouble(conversation, item));
  return row;
}

function trouble(conversation, item) {
  const made = element('div', 'trouble', `Not sent: ${item.error} `);
  made.setAttribute('role', 'alert');
  const again = element('button', '', 'Try again');
  again.onclick = () => {
    chat.discard(conversation, item);
    chat.send(conversation, item.data);
    ui.text.focus();
  };
  const discard = element('button', '', 'Discard');
  discard.onclick = () => {
    chat.discard(conversation, item);
    ui.text.focus();
  };
  made.append(again, ' ', discard);
  return made;
}

// Many messages in one moment cost one drawing.
let isDrawing = false;
function draw() {
  if (isDrawing) return;
  isDrawing = true;
  requestAnimationFrame(() => {
    isDrawing = false;
    if (!chat) return;
    renderList();
    renderTalk();
  });
}

// ---- The connection ----------------------------------------------------------------------------------------------

function showState({ name, reason, code, attempt }) {
  clearTimeout(stateTimer);
  const words = { connecting: 'Connecting…', connected: 'Connected', closed: 'Disconnected' };
  const set = () => {
    ui.state.textContent = words[name];
    ui.state.dataset.state = name;
    const isBack = Boolean(ui.state.dataset.wasConnected);
    // One failed attempt is nothing unusual.
    ui.banner.hidden = name !== 'connecting' || !(isBack || attempt > 2);
    ui.banner.textContent = isBack
      ? 'Reconnecting… What you write is kept, and sent as soon as the connection is back.'
      : `${url} does not answer. Is it running? The page goes on trying, and keeps what you write.`;
  };
  if (name === 'connecting' && ui.state.dataset.wasConnected) stateTimer = setTimeout(set, PATIENCE);
  else set();
  if (name === 'connected') ui.state.dataset.wasConnected = 'yes';
  if (name === 'closed' && code !== 'closed') {
    ui['ended-reason'].textContent = reason;
    ui.ended.showModal();
  }
}

// ---- What the user does ------------------------------------------------------------------------------------------

function start(user) {
  const address = token ? url : `${url}${url.includes('?') ? '&' : '?'}userId=${encodeURIComponent(user)}`;
  chat = new Chat({ url: address, user, token: token ? () => token : undefined, storage: localStorage });
  chat.addEventListener('state', ({ detail }) => showState(detail));
  chat.addEventListener('list', draw);
  chat.addEventListener('change', ({ detail: { conversation, item } }) => {
    const isHere = conversation.name === chat.open;
    if (isHere && item && !item.isMine && !isSticky) ui.newest.hidden = false;
    draw();
  });
  showState({ name: 'connecting' });
  ui['my-name'].textContent = user;
  ui['my-avatar'].replaceWith(Object.assign(avatar(user), { id: 'my-avatar' }));
  ui.welcome.hidden = true;
  ui.chat.hidden = false;
  route();
}

function leave() {
  sessionStorage.removeItem('switchboard name');
  chat.close();
  chat = undefined;
  rows = new Map();
  delete ui.state.dataset.wasConnected;
  history.replaceState(null, '', location.pathname + location.search);
  ui.chat.hidden = true;
  ui.welcome.hidden = false;
  ui.name.focus();
}

/** The address names the open conversation, so back and forward work. */
function route() {
  if (!chat) return;
  let name;
  try {
    name = decodeURIComponent(location.hash.slice(1));
  } catch {
    name = '';
  }
  if (!name && !matchMedia('(max-width: 720px)').matches) name = chat.conversations.keys().next().value ?? '';
  if (name) chat.add(name);
  shown = SHOWN;
  ui.newest.hidden = true;
  chat.show(name, document.visibilityState === 'visible');
  ui.chat.classList.toggle('open', Boolean(name));
  renderList();
  renderTalk();
  toEnd();
  if (name && matchMedia('(hover: hover)').matches) ui.text.focus();
}

function grow() {
  ui.text.style.height = 'auto';
  ui.text.style.height = `${ui.text.scrollHeight + 2}px`;
}

ui['sign-in'].addEventListener('submit', (event) => {
  event.preventDefault();
  const name = ui.name.value.trim();
  if (!name) return;
  sessionStorage.setItem('switchboard name', name);
  start(name);
});

ui.new.addEventListener('submit', (event) => {
  event.preventDefault();
  // The page shows topics with a `#`, which is no part of their names.
  const to = ui.to.value.trim().replace(/^#+/, '');
  const problem =
    !to || to === '@'
      ? 'Write a topic, or @ and a name.'
      : new TextEncoder().encode(to.replace(/^@/, '')).length > 256
        ? 'A name has at most 256 bytes.'
        : '';
  ui['new-problem'].textContent = problem;
  if (problem) return;
  ui.to.value = '';
  location.hash = encodeURIComponent(to);
});

ui.compose.addEventListener('submit', (event) => {
  event.preventDefault();
  const text = ui.text.value.trim();
  if (!text || !current()) return;
  chat.send(current(), text);
  ui.text.value = '';
  grow();
  isSticky = true;
  draw();
  ui.text.focus();
});

ui.text.addEventListener('input', grow);
ui.text.addEventListener('keydown', (event) => {
  // While an input method composes, Enter belongs to it.
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  ui.compose.requestSubmit();
});

ui.list.addEventListener('keydown', (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step) return;
  const links = [...ui.list.querySelectorAll('a')];
  links.at((links.indexOf(document.activeElement) + step) % links.length)?.focus();
  event.preventDefault();
});

ui.older.addEventListener('click', async () => {
  const conversation = current();
  const { scrollHeight, scrollTop } = ui.scroll;
  isSticky = false;
  if (conversation.items.length <= shown) {
    ui.older.disabled = true;
    await chat.older(conversation).catch(() => {});
    ui.older.disabled = false;
  }
  shown += SHOWN;
  renderTalk();
  // What was on the screen stays where it was.
  ui.scroll.scrollTop = scrollTop + ui.scroll.scrollHeight - scrollHeight;
});

ui.scroll.addEventListener('scroll', () => {
  isSticky = isAtEnd();
  if (isSticky) ui.newest.hidden = true;
});
const heights = new ResizeObserver(() => isSticky && toEnd());
heights.observe(ui.scroll);
heights.observe(ui.messages);
ui.newest.addEventListener('click', () => {
  toEnd();
  ui.text.focus();
});
ui.back.addEventListener('click', () => {
  history.pushState(null, '', location.pathname + location.search);
  route();
  ui.list.querySelector('a')?.focus();
});
ui.leave.addEventListener('click', leave);
ui.remove.addEventListener('click', () => {
  chat.remove(chat.open);
  history.replaceState(null, '', location.pathname + location.search);
  route();
  ui.to.focus();
});
ui.ended.addEventListener('close', () => {
  const { user } = chat;
  chat.close();
  start(user);
});
addEventListener('hashchange', route);
document.addEventListener('visibilitychange', () => chat?.show(chat.open, document.visibilityState === 'visible'));

/** The user of a token, which the server checks and this page only shows. */
function userOf(text) {
  try {
    const bytes = Uint8Array.from(atob(text.split('.')[1].replace(/-/g, '+').replace(/_/g, '/')), (char) =>
      char.charCodeAt(0),
    );
    return JSON.parse(new TextDecoder().decode(bytes)).sub;
  } catch {
    return 'you';
  }
}

ui.server.textContent = url;
const name = token ? userOf(token) : sessionStorage.getItem('switchboard name');
if (name) start(name);
else {
  ui.welcome.hidden = false;
  ui.name.focus();
}
