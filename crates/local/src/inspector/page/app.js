// The page: it shows what the model knows, and hands on what the developer does. Everything that comes from the stack is
// inserted as text.
import { cut, durationOf, indented, passes, SECONDS, Stories } from './stories.js';

const ui = Object.fromEntries([...document.querySelectorAll('[id]')].map((element) => [element.id, element]));

/** The most rows that are in the document. */
const SHOWN = 200;
/** How often the list is drawn, in ms. */
const DRAW = 150;

let stories = new Stories();
let service;
let picture;
let isPaused = false;
let isDrawing = false;
/** Stories that have changed since the last drawing. */
const changed = new Set();
/** The rows in the document, by story. */
const rows = new Map();
/** The story that a developer has just started, so that the page opens it. */
let wanted;
/** The difference between the clock of the stack and that of this page, in µs. */
let skew = 0;

const now = () => Date.now() * 1000 + skew;
const filters = () => ({
  connection: ui['by-connection'].value,
  function: ui['by-function'].value,
  errors: ui['by-error'].checked,
});

// ---- Small parts -------------------------------------------------------------------------------------------------

function element(tag, className, ...content) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...content.filter((part) => part !== undefined && part !== ''));
  return made;
}

function button(text, action, className) {
  const made = element('button', className, text);
  made.type = 'button';
  made.addEventListener('click', action);
  return made;
}

const clock = new Intl.DateTimeFormat(undefined, {
  hour: '2-digit',
  minute: '2-digit',
  second: '2-digit',
  fractionalSecondDigits: 3,
  hour12: false,
});
const took = (ms) =>
  ms >= 10_000 ? `${(ms / 1000).toFixed(1)} s` : ms >= 100 ? `${Math.round(ms)} ms` : `${ms.toFixed(1)} ms`;
const size = (bytes) =>
  bytes < 1000 ? `${bytes} B` : bytes < 1e6 ? `${(bytes / 1000).toFixed(1)} KB` : `${(bytes / 1e6).toFixed(1)} MB`;
const perSecond = (rate) => (rate === 0 ? '–' : rate < 10 ? `${rate.toFixed(1)}/s` : `${Math.round(rate)}/s`);
const shortOf = (id) => (id.length > 12 ? `${id.slice(0, 8)}…` : id);
const nameOf = (id) => stories.labels.get(id) ?? shortOf(id);
const plural = (count, one) => `${count.toLocaleString()} ${one}${count === 1 ? '' : 's'}`;

function hue(text) {
  let hash = 7;
  for (const char of text) hash = (hash * 31 + char.codePointAt(0)) % 3600;
  return `${(hash * 137) % 360}`;
}

function dot(id) {
  const made = element('span', 'dot');
  made.style.setProperty('--hue', hue(id));
  return made;
}

/** A line of the last minute. */
function spark(rate) {
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  svg.setAttribute('viewBox', `0 0 ${SECONDS - 1} 18`);
  svg.setAttribute('preserveAspectRatio', 'none');
  svg.setAttribute('aria-hidden', 'true');
  const path = document.createElementNS('http://www.w3.org/2000/svg', 'path');
  const series = rate?.series(now()) ?? new Array(SECONDS).fill(0);
  const top = Math.max(2, ...series);
  path.setAttribute(
    'd',
    series.map((count, at) => `${at ? 'L' : 'M'}${at} ${(17 - (count / top) * 16).toFixed(1)}`).join(''),
  );
  svg.append(path);
  return svg;
}

/** A block of text. It may be long, so a keyboard can scroll it. */
function code(text) {
  const made = element('pre', '', indented(text));
  made.tabIndex = 0;
  return made;
}

/** A text of the stack, with a word if a part of it is missing. */
function bodyOf({ text, bytes }) {
  const isWhole = new TextEncoder().encode(text).length >= bytes;
  const made = element('div', '', code(text || ' '));
  if (!isWhole) made.append(element('p', 'fine', `This is the beginning. The whole has ${size(bytes)}.`));
  return made;
}

// ---- The picture of the service ----------------------------------------------------------------------------------

function drawPicture() {
  if (!picture || !service) return;
  const chosen = filters();
  ui.count.textContent = picture.count.toLocaleString();
  ui['no-connections'].hidden = picture.count > 0;
  ui['more-connections'].hidden = picture.connections.length >= picture.count;
  ui['more-connections'].textContent = `and ${picture.count - picture.connections.length} more`;
  keepFocus(
    ui.connections,
    picture.connections.map((connection) => connectionRow(connection, chosen)),
  );
  const environments = Object.values(picture.functions).flat();
  ui.environments.textContent = plural(environments.length, 'environment');
  keepFocus(
    ui.functions,
    Object.entries(picture.functions).map((entry) => functionRow(entry, chosen)),
  );
  ui['tables-count'].textContent = service.tables.length;
  ui.tables.replaceChildren(...service.tables.map((table, index) => tableRow(table, picture.items[index])));
  ui['posts-count'].textContent = stories.posts.total.toLocaleString();
  ui.posts.replaceChildren(
    element('span', 'sub', 'in the last minute'),
    spark(stories.posts),
    element('span', 'rate', perSecond(stories.posts.now(now()))),
  );
  ui.posts.classList.toggle('still', stories.posts.now(now()) === 0);
  drawChoices();
}

/** Replaces the rows of a list. The row with the focus keeps it, and an equal list stays as it is. */
function keepFocus(list, items) {
  const focused = list.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  list.replaceChildren(...items);
  if (focused !== undefined) [...list.querySelectorAll('button')].find((it) => it.dataset.key === focused)?.focus();
}

function choice(select, key, isChosen, ...content) {
  const made = button('', () => {
    select.value = isChosen ? '' : key;
    if (select.value !== (isChosen ? '' : key)) {
      select.append(new Option(nameOf(key), key));
      select.value = key;
    }
    filtered();
  });
  made.append(...content);
  made.dataset.key = key;
  made.setAttribute('aria-pressed', String(isChosen));
  return made;
}

function connectionRow({ id, connectedAt }, chosen) {
  const frames = stories.frames.get(id);
  const label = stories.labels.get(id);
  const made = choice(
    ui['by-connection'],
    id,
    chosen.connection === id,
    dot(id),
    element('span', `title${label ? '' : ' mono'}`, label ?? id),
    element('span', 'rate', perSecond(frames?.now(now()) ?? 0)),
    element(
      'span',
      'sub',
      `${label ? `${shortOf(id)}, ` : ''}since ${clock.format(connectedAt).slice(0, 8)}, ${plural(frames?.total ?? 0, 'frame')}`,
    ),
  );
  made.classList.add('row', 'connection');
  return element('li', '', made);
}

function functionRow([name, environments], chosen) {
  const rate = stories.functions.get(name);
  const busy = environments.filter((it) => it.busy).length;
  const boxes = environments.slice(0, 24).map((it) => {
    const made = element('span', `box${it.busy ? ' busy' : ''}`);
    made.title = `environment ${it.number}, process ${it.process}, ${plural(it.events, 'event')}`;
    made.setAttribute('aria-hidden', 'true');
    return made;
  });
  const words = environments.length
    ? `${plural(environments.length, 'environment')}${busy ? `, ${busy} busy` : ''}`
    : 'not started';
  const made = choice(
    ui['by-function'],
    name,
    chosen.function === name,
    element('span', 'title', name),
    spark(rate),
    element('span', 'rate', perSecond(rate?.now(now()) ?? 0)),
    element('span', 'sub', ...boxes, element('span', boxes.length ? 'hidden' : '', words)),
  );
  made.classList.add('row');
  made.classList.toggle('still', !rate || rate.now(now()) === 0);
  return element('li', '', made);
}

function tableRow(name, items) {
  const [reads, writes] = [stories.reads.get(name), stories.writes.get(name)];
  const both = {
    series: (at) =>
      (reads?.series(at) ?? new Array(SECONDS).fill(0)).map((count, index) => count + (writes?.series(at)[index] ?? 0)),
  };
  const [read, written] = [reads?.now(now()) ?? 0, writes?.now(now()) ?? 0];
  const short = name.startsWith(`${service.name}-${service.stage}-`)
    ? name.slice(service.name.length + service.stage.length + 2)
    : name;
  const title = element('span', 'title', short);
  title.title = name;
  const made = element(
    'li',
    'row',
    title,
    spark(both),
    element('span', 'rate', items === null ? '' : plural(items, 'item')),
    element('span', 'sub', `reads ${perSecond(read)}, writes ${perSecond(written)}`),
  );
  made.classList.toggle('still', read + written === 0);
  return made;
}

/** Fills the two lists of filters. What is chosen stays, also when it is gone. */
function drawChoices() {
  const fill = (select, all, names) => {
    const wantedKeys = [...new Set([...names.keys(), ...(select.value ? [select.value] : [])])];
    if (
      wantedKeys.join('\n') ===
      [...select.options]
        .slice(1)
        .map((it) => it.value)
        .join('\n')
    )
      return;
    const { value } = select;
    select.replaceChildren(
      new Option(all, ''),
      ...wantedKeys.map((key) => new Option(names.get(key) ?? nameOf(key), key)),
    );
    select.value = value;
  };
  if (document.activeElement !== ui['by-connection'])
    fill(ui['by-connection'], 'All connections', new Map(picture.connections.map(({ id }) => [id, nameOf(id)])));
  fill(ui['by-function'], 'All functions', new Map(service.functions.map((name) => [name, name])));
}

// ---- The stories -------------------------------------------------------------------------------------------------

const kinds = {
  handshake: 'handshake',
  frame: 'frame',
  disconnect: 'disconnect',
  batch: 'stream',
  run: 'run',
  call: 'DynamoDB',
  post: 'post',
};

function titleOf({ kind, first, route, answer, functions }) {
  switch (kind) {
    case 'handshake':
      return [
        answer ? (answer.status === 101 ? 'Accepted' : `Refused with ${answer.status}`) : 'Connecting',
        first.path,
      ];
    case 'frame':
      return [route ?? 'Frame', first.text.text];
    case 'disconnect':
      return [`Closed with ${first.code}`, first.reason];
    case 'batch':
      return [[...functions].join(', '), `${plural(first.records, 'record')} of ${first.table}`];
    case 'run':
      return [first.function, 'an event that you ran'];
    case 'call':
      return [first.operation, `${first.tables.join(', ')} from outside`];
    default:
      return [`${first.method} @connections: ${first.status}`, `${first.text?.text ?? ''} from outside`];
  }
}

function rowOf(story) {
  const details = element('details', 'story');
  details.append(element('summary', ''));
  details.addEventListener('toggle', () => {
    if (story.isOpen === details.open) return;
    story.isOpen = details.open;
    details.querySelector('.panel')?.remove();
    if (details.open) details.append(panelOf(story));
  });
  details.open = story.isOpen;
  const row = element('li', '', details);
  rows.set(story, row);
  drawRow(story);
  return row;
}

function drawRow(story) {
  const row = rows.get(story);
  const details = row.firstChild;
  const [title, preview] = titleOf(story);
  details.className = `story${story.error ? ' failed' : ''}${story.isDone ? '' : ' running'}`;
  const who = element('span', 'who');
  if (story.connection) who.append(dot(story.connection), element('span', '', nameOf(story.connection)));
  const time = element('time', '', clock.format(story.at / 1000));
  details.firstChild.replaceChildren(
    time,
    element('span', `kind ${story.kind}`, kinds[story.kind]),
    element('span', 'what', element('strong', '', title), ' ', element('span', 'preview', cut(preview, 300))),
    who,
    element('span', 'took', took(durationOf(story)), element('span', 'hidden', story.error ? ', failed' : '')),
  );
  if (!story.isOpen) return;
  // What was unfolded inside stays so.
  const open = new Set([...details.querySelectorAll('.panel details[open]')].map((it) => it.dataset.key));
  const focused = details.querySelector('.panel')?.contains(document.activeElement)
    ? document.activeElement.closest('[data-key]')?.dataset.key
    : undefined;
  details.querySelector('.panel')?.remove();
  const panel = panelOf(story);
  for (const step of panel.querySelectorAll('details')) step.open = open.has(step.dataset.key);
  details.append(panel);
  if (focused) [...panel.querySelectorAll('[data-key]')].find((it) => it.dataset.key === focused)?.firstChild.focus?.();
}

function panelOf(story) {
  const panel = element('div', 'panel');
  const { first } = story;
  const fact = (name, value) => value && element('span', '', `${name} `, element('b', 'mono', value));
  const id = story.request && fact('request', story.request);
  panel.append(
    element('div', 'facts', ...[id, fact('connection', story.connection), fact('from', first.address)].filter(Boolean)),
  );
  if (story.error) panel.append(element('p', 'mistake', story.error));
  if (story.kind === 'frame')
    panel.append(
      element(
        'section',
        'body',
        element('h3', '', 'The frame '),
        element('span', 'fine', size(first.text.bytes)),
        bodyOf(first.text),
      ),
    );
  for (const invocation of story.invocations.values()) panel.append(invocationOf(story, invocation));
  if (story.steps.length) {
    const outside = element('section', 'invocation');
    outside.append(
      element(
        'header',
        '',
        element('h3', '', story.kind === 'call' || story.kind === 'post' ? 'A call from outside' : 'The gateway'),
      ),
      stepsOf(story, story.steps),
    );
    panel.append(outside);
  }
  if (story.kind === 'frame' && story.isDone && !story.invocations.size && !story.steps.length)
    panel.append(element('p', 'fine', 'No function got this frame.'));
  if (story.more) panel.append(element('p', 'fine', `and ${story.more} more steps, which are not kept`));
  return panel;
}

function invocationOf(story, invocation) {
  const { event, response } = invocation;
  const made = element('section', 'invocation');
  const isWhole = new TextEncoder().encode(event.text).length >= event.bytes;
  const copy = button('Copy event', async () => {
    await navigator.clipboard.writeText(event.text);
    copy.textContent = 'Copied';
    setTimeout(() => (copy.textContent = 'Copy event'), 1500);
  });
  const again = button('Run again', () => openRun(invocation.function, indented(event.text)));
  copy.disabled = !isWhole;
  again.disabled = !isWhole;
  if (!isWhole) again.title = `The event has ${size(event.bytes)}, and only its beginning was kept.`;
  const header = element(
    'header',
    '',
    element('h3', '', invocation.function),
    element(
      'span',
      `tag${invocation.init === null ? '' : ' cold'}`,
      invocation.environment === null ? 'not started' : invocation.init === null ? 'warm' : 'cold start',
    ),
    element(
      'span',
      '',
      [
        invocation.environment !== null && `environment ${invocation.environment}, process ${invocation.process}`,
        invocation.init !== null && `init ${took(invocation.init)}`,
        invocation.init === null && invocation.waited >= 1 && `waited ${took(invocation.waited)}`,
        response ? took(response.ms) : 'running',
      ]
        .filter(Boolean)
        .join(', '),
    ),
    element('div', 'buttons', copy, again),
  );
  const steps = [{ ...invocation, kind: 'event' }, ...invocation.steps];
  if (response) steps.push(response);
  made.append(header, stepsOf(story, steps));
  return made;
}

function stepsOf(story, steps) {
  const startOf = (step) => step.at - (step.kind === 'call' || step.kind === 'post' ? step.ms * 1000 : 0);
  const total = Math.max(1, story.end - story.at);
  const sorted = steps.map((step) => ({ step, start: startOf(step) })).sort((a, b) => a.start - b.start);
  return element('ol', 'steps', ...sorted.map(({ step, start }) => stepOf(story, step, start, total)));
}

/** A line of a log: its message first, if it is JSON. */
function logOf(text) {
  try {
    const line = JSON.parse(text);
    const { level, message, fields, timestamp, ...rest } = line;
    const said = message ?? fields?.message;
    if (typeof said !== 'string') return ['', text];
    const pairs = Object.entries({ ...rest, ...(typeof fields === 'object' ? fields : {}) });
    const more = pairs
      .filter(([name, value]) => name !== 'message' && value !== null)
      .map(([name, value]) => `${name}=${typeof value === 'string' ? value : JSON.stringify(value)}`);
    return [`${level ?? ''} ${said}`.trim(), more.join(' ')];
  } catch {
    return ['', text];
  }
}

function stepOf(story, step, start, total) {
  const parts = [];
  let [bold, text, ms, failed] = ['', '', undefined, false];
  switch (step.kind) {
    case 'event':
      [bold, text] = ['Event', size(step.event.bytes)];
      ms = step.response?.ms;
      parts.push(['', step.event]);
      break;
    case 'response':
      failed = Boolean(step.error);
      [bold, text] = failed ? ['Error', step.error] : ['Response', cut(step.text?.text ?? '', 200)];
      if (step.text) parts.push(['', step.text]);
      break;
    case 'call':
      failed = step.status >= 400;
      ms = step.ms;
      [bold, text] = [
        step.operation,
        [
          step.tables.join(', '),
          step.units !== null && plural(step.units, 'unit'),
          failed && `${step.status} ${step.error ?? ''}`,
        ]
          .filter(Boolean)
          .join(', '),
      ];
      parts.push(['Request', step.input], ['Response', step.output]);
      break;
    case 'post':
      failed = step.status >= 400;
      ms = step.ms;
      [bold, text] = [
        `${step.method} ${nameOf(step.connection)}`,
        [`${step.status}`, step.error, cut(step.text?.text ?? '', 200)].filter(Boolean).join(' '),
      ];
      parts.push([step.connection, step.text ?? { text: '', bytes: 0 }]);
      break;
    case 'reply':
      [bold, text] = ['Frame to the sender', cut(step.text.text, 200)];
      parts.push(['', step.text]);
      break;
    default: {
      [bold, text] = logOf(step.text.text);
      failed = /^(ERROR|WARN)\b/.test(bold);
      parts.push(['', step.text]);
    }
  }
  const bar = element('span', 'bar', element('i', ''));
  bar.style.setProperty('--from', `${Math.min(98, Math.max(0, ((start - story.at) / total) * 100))}%`);
  bar.style.setProperty('--size', `${Math.min(100, (((ms ?? 0) * 1000) / total) * 100)}%`);
  const details = element('details', `step ${step.kind}${failed ? ' failed' : ''}`);
  details.dataset.key = `${step.n}${step.kind}`;
  const mark = element('span', 'mark');
  const label = element('span', 'text', element('b', '', bold), ' ', element('span', '', text));
  details.append(
    element(
      'summary',
      '',
      element('span', 'at', `+${((start - story.at) / 1000).toFixed(1)}`),
      mark,
      label,
      bar,
      element('span', 'took', ms === undefined ? '' : took(ms)),
    ),
  );
  if (ms === undefined) bar.style.visibility = 'hidden';
  const fill = () => {
    if (!details.open || details.children.length > 1) return;
    const inside = element('div', 'inside');
    for (const [title, body] of parts) {
      if (title) inside.append(element('h4', '', title));
      inside.append(bodyOf(body));
    }
    details.append(inside);
  };
  details.addEventListener('toggle', fill);
  return element('li', '', details);
}

// ---- Drawing -----------------------------------------------------------------------------------------------------

function draw() {
  if (isDrawing) return;
  isDrawing = true;
  setTimeout(() => {
    isDrawing = false;
    drawNow();
  }, DRAW);
}

function drawNow() {
  const chosen = filters();
  const anchor =
    document.activeElement?.closest?.('#stories > li') ?? ui.stories.querySelector('li:has(> details[open])');
  const before = anchor?.getBoundingClientRect().top;
  let waiting = 0;
  const fresh = [];
  for (const story of changed) {
    const row = rows.get(story);
    if (row) {
      if (passes(story, chosen) || story.isOpen) drawRow(story);
      else remove(story);
    } else if (stories.all.has(story.number) && passes(story, chosen)) {
      if (isPaused && story.number !== wanted) {
        waiting += 1;
        continue;
      }
      fresh.push(story);
    }
    if (!isPaused || row || !fresh.includes(story)) changed.delete(story);
  }
  // The newest story is on top.
  fresh.sort((a, b) => a.number - b.number);
  for (const story of fresh.slice(-SHOWN)) {
    const row = rowOf(story);
    const next = [...ui.stories.children].find((it) => it.story < story.number);
    row.story = story.number;
    ui.stories.insertBefore(row, next ?? null);
    changed.delete(story);
  }
  if (!isPaused) {
    changed.clear();
    for (const [story, row] of rows) {
      if (ui.stories.childElementCount <= SHOWN) break;
      if (!row.firstChild.open && row !== anchor) remove(story);
    }
  }
  if (anchor?.isConnected) {
    const delta = anchor.getBoundingClientRect().top - before;
    const scroller = ui.scroll.scrollHeight > ui.scroll.clientHeight + 1 ? ui.scroll : document.scrollingElement;
    if (delta) scroller.scrollTop += delta;
  }
  openWanted();
  ui.waiting.hidden = !isPaused || waiting === 0;
  ui.waiting.textContent = `${plural(waiting, 'new row')}: go on`;
  const count = ui.stories.childElementCount;
  const isFiltered = chosen.connection || chosen.function || chosen.errors;
  ui.shown.textContent = [
    count ? `${plural(count, 'row')}${isFiltered ? ' of these' : ''}` : '',
    stories.missed ? `${stories.missed} facts were missed` : '',
  ]
    .filter(Boolean)
    .join(', ');
  ui.empty.textContent = count
    ? ''
    : isFiltered
      ? 'Nothing that passes these filters has happened yet.'
      : 'Nothing has happened since you opened this page. The next handshake, frame or event appears here.';
}

function remove(story) {
  rows.get(story)?.remove();
  rows.delete(story);
}

/** Shows again what passes the filters. */
function filtered() {
  for (const story of [...rows.keys()]) if (!passes(story, filters())) remove(story);
  for (const story of stories.all.values()) if (!rows.has(story)) changed.add(story);
  ui.actions.hidden = !ui['by-connection'].value;
  drawNow();
  drawPicture();
}

/** Opens the story that the developer has started. */
function openWanted() {
  const story = stories.all.get(wanted);
  const row = rows.get(story);
  if (!row) return;
  wanted = undefined;
  row.firstChild.open = true;
  row.firstChild.firstChild.focus();
  row.scrollIntoView({ block: 'nearest' });
}

function showState() {
  const isOpen = feed.readyState === EventSource.OPEN;
  const state = !isOpen ? 'connecting' : isPaused ? 'paused' : 'live';
  ui.state.dataset.state = state;
  ui.state.textContent = { connecting: 'The stack does not answer', paused: 'Paused', live: 'Live' }[state];
}

// ---- What the developer does -------------------------------------------------------------------------------------

async function post(what, body) {
  try {
    const response = await fetch(`/inspect/${what}`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify(body),
    });
    const answer = await response.json();
    return response.ok ? answer : { problem: answer.message };
  } catch {
    return { problem: 'The stack does not answer.' };
  }
}

function openRun(name, event) {
  ui['run-function'].replaceChildren(...service.functions.map((key) => new Option(key, key)));
  ui['run-function'].value = name ?? (filters().function || service.functions[0]);
  if (event !== undefined) ui['run-event'].value = event;
  ui['run-problem'].textContent = '';
  ui['run-dialog'].showModal();
  ui['run-event'].focus();
  ui['run-event'].setSelectionRange(0, 0);
}

ui.run.addEventListener('click', () => service && openRun());
ui['run-cancel'].addEventListener('click', () => ui['run-dialog'].close());
ui['run-form'].addEventListener('submit', async (event) => {
  event.preventDefault();
  const { problem, story } = await post('run', { function: ui['run-function'].value, event: ui['run-event'].value });
  ui['run-problem'].textContent = problem ?? '';
  if (problem) return;
  ui['run-dialog'].close();
  for (const name of ['by-connection', 'by-function']) ui[name].value = '';
  ui['by-error'].checked = false;
  wanted = story;
  filtered();
});

ui.send.addEventListener('click', () => {
  ui['send-to'].textContent = nameOf(filters().connection);
  ui['send-problem'].textContent = '';
  ui['send-dialog'].showModal();
});
ui['send-cancel'].addEventListener('click', () => ui['send-dialog'].close());
ui['send-form'].addEventListener('submit', async (event) => {
  event.preventDefault();
  const { problem } = await post('send', { connection: filters().connection, text: ui['send-text'].value });
  ui['send-problem'].textContent = problem ?? '';
  if (!problem) ui['send-dialog'].close();
});

ui.drop.addEventListener('click', async () => {
  const { problem } = await post('close', { connection: filters().connection });
  ui.problem.textContent = problem ?? '';
});

function pause(paused) {
  isPaused = paused;
  ui.pause.setAttribute('aria-pressed', String(paused));
  ui.pause.textContent = paused ? 'Go on' : 'Pause';
  showState();
  drawNow();
}
ui.pause.addEventListener('click', () => pause(!isPaused));
ui.waiting.addEventListener('click', () => {
  pause(false);
  ui.pause.focus();
});
ui.clear.addEventListener('click', () => {
  for (const story of stories.all.values()) story.isOpen = false;
  stories.clear();
  changed.clear();
  for (const story of [...rows.keys()]) remove(story);
  drawNow();
});
for (const name of ['by-connection', 'by-function', 'by-error'])
  ui[name].addEventListener('change', () => {
    ui.problem.textContent = '';
    filtered();
  });
ui.filters.addEventListener('submit', (event) => event.preventDefault());
ui.stories.addEventListener('keydown', (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step || event.target.localName !== 'summary') return;
  const all = [...ui.stories.querySelectorAll('summary')].filter((it) => it.checkVisibility());
  all[all.indexOf(event.target) + step]?.focus();
  event.preventDefault();
});

// A phone shows the numbers of the service, and the rest on request.
if (matchMedia('(max-width: 760px)').matches)
  for (const group of document.querySelectorAll('.group')) group.open = false;

// ---- The feed ----------------------------------------------------------------------------------------------------

const feed = new EventSource('/inspect/feed');
feed.addEventListener('service', ({ data }) => {
  const next = JSON.parse(data);
  if (service && service.run !== next.run) {
    // The stack was started again.
    for (const story of [...rows.keys()]) remove(story);
    stories = new Stories();
    changed.clear();
  }
  service = next;
  ui.service.textContent = `${service.name}, stage ${service.stage}`;
  document.title = `${service.name}: Inspector`;
  showState();
  drawNow();
});
feed.addEventListener('facts', ({ data }) => {
  const page = JSON.parse(data);
  const latest = page.facts.at(-1).at;
  // Both clocks are this machine's, except if the page was loaded through a tunnel.
  if (Math.abs(latest - now()) > 5e6) skew += latest - now();
  for (const story of stories.take(page)) changed.add(story);
  draw();
});
feed.addEventListener('picture', ({ data }) => {
  picture = JSON.parse(data);
  drawPicture();
});
feed.addEventListener('error', showState);
feed.addEventListener('open', showState);
