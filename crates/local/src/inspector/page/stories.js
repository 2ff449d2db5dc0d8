// The model of the page: from facts to stories, and to rates. It knows nothing of the document.

/** The most stories that are kept. */
export const MAX_STORIES = 500;
/** The most steps of one story that are kept. */
const MAX_STEPS = 400;
/** The most characters of all texts together, about. */
const MAX_TEXT = 64e6;
/** The seconds of a rate's picture. */
export const SECONDS = 60;

/** Errors that a function may expect: it asked for a condition. */
const EXPECTED = /^(ConditionalCheckFailed|TransactionCanceled)Exception/;
const READS = /^(Get|BatchGet|Query|Scan|TransactGet|Describe|List)/;

/** How often something happened in each of the last seconds. */
export class Rate {
  #counts = new Array(SECONDS).fill(0);
  #second = 0;
  total = 0;

  add(at) {
    this.#move(Math.floor(at / 1e6));
    this.#counts[this.#second % SECONDS] += 1;
    this.total += 1;
  }

  /** The counts of the last seconds, the present one last. */
  series(now) {
    this.#move(Math.floor(now / 1e6));
    return Array.from({ length: SECONDS }, (_, index) => this.#counts[(this.#second + 1 + index) % SECONDS]);
  }

  /** How often a second, in the last five whole seconds. */
  now(now) {
    return (
      this.series(now)
        .slice(-6, -1)
        .reduce((sum, count) => sum + count, 0) / 5
    );
  }

  #move(second) {
    if (second - this.#second >= SECONDS) this.#counts.fill(0);
    else for (let next = this.#second + 1; next <= second; next += 1) this.#counts[next % SECONDS] = 0;
    this.#second = Math.max(this.#second, second);
  }
}

/** Every story that is known, and what the facts say about connections, functions and tables. */
export class Stories {
  /** Stories by number, the oldest first. */
  all = new Map();
  /** What a connection's handshake asked for, by id. */
  labels = new Map();
  frames = new Map();
  functions = new Map();
  reads = new Map();
  writes = new Map();
  posts = new Rate();
  missed = 0;
  /** The characters of all texts. */
  text = 0;

  clear() {
    for (const story of this.all.values()) this.#forget(story);
    this.missed = 0;
  }

  #forget(story) {
    if (story.isOpen) return;
    this.all.delete(story.number);
    this.text -= story.text;
  }

  /** Takes facts in order, and returns the stories that have changed. */
  take({ missed, facts }) {
    this.missed += missed;
    const changed = new Set();
    for (const fact of facts) {
      const story = this.all.get(fact.story) ?? this.#begin(fact);
      if (!story) continue;
      this.#add(story, fact);
      changed.add(story);
    }
    for (const story of this.all.values()) {
      if (this.all.size <= MAX_STORIES && this.text <= MAX_TEXT) break;
      this.#forget(story);
    }
    return changed;
  }

  /** A story whose beginning is lost is no story. */
  #begin(fact) {
    if (!['handshake', 'frame', 'disconnect', 'batch', 'run', 'call', 'post'].includes(fact.kind)) return undefined;
    const story = {
      number: fact.story,
      kind: fact.kind,
      first: fact,
      at: fact.at,
      end: fact.at,
      connection: fact.connection,
      request: fact.request,
      invocations: new Map(),
      functions: new Set(),
      steps: [],
      more: 0,
      text: 0,
      error: '',
      isDone: fact.kind === 'call' || fact.kind === 'post',
      isOpen: false,
    };
    if (fact.kind === 'batch' || fact.kind === 'run') story.functions.add(fact.function);
    this.all.set(story.number, story);
    return story;
  }

  #add(story, fact) {
    const ms = fact.ms ?? 0;
    const text = [fact.text, fact.event, fact.input, fact.output].reduce((sum, it) => sum + (it?.text.length ?? 0), 0);
    story.text += text;
    this.text += text;
    story.end = Math.max(story.end, fact.at);
    // What took time is told when it is over.
    if (story.first === fact) story.at -= story.isDone ? ms * 1000 : 0;
    const invocation = story.invocations.get(fact.invocation);
    switch (fact.kind) {
      case 'connection':
        story.connection = fact.connection;
        story.request = fact.request;
        this.#label(fact.connection, story.first.path);
        return;
      case 'frame':
        count(this.frames, fact.connection).add(fact.at);
        return;
      case 'route':
        story.route = fact.route;
        return;
      case 'invocation':
        story.functions.add(fact.function);
        story.invocations.set(fact.invocation, { ...fact, steps: [] });
        count(this.functions, fact.function).add(fact.at);
        story.isDone = false;
        return;
      case 'response':
        if (invocation) invocation.response = fact;
        if (fact.error) story.error ||= fact.error;
        if (story.kind === 'disconnect' || story.kind === 'batch') story.isDone = true;
        return;
      case 'answer':
        story.answer = fact;
        story.isDone = true;
        if (fact.status >= 400) story.error ||= `${fact.status} ${fact.reason}`;
        return;
      case 'trouble':
        story.error ||= fact.reason;
        // No function got the records.
        if (story.kind === 'batch') story.isDone = true;
        return;
      case 'done':
        story.isDone = true;
        story.done = fact;
        if (fact.error) story.error ||= fact.error;
        return;
      case 'call':
        for (const table of fact.tables)
          count(READS.test(fact.operation) ? this.reads : this.writes, table).add(fact.at);
        if (fact.status >= 400 && !EXPECTED.test(fact.error ?? '')) story.error ||= `${fact.operation}: ${fact.error}`;
        break;
      case 'post':
        this.posts.add(fact.at);
        story.connection ??= fact.connection;
        if (fact.status >= 400) story.error ||= `${fact.method} @connections: ${fact.status} ${fact.error ?? ''}`;
        break;
      case 'disconnect':
        // The gateway closed it for a mistake of the client, or for one of its own.
        if ([1002, 1003, 1007, 1008, 1009, 1011].includes(fact.code)) story.error = `${fact.code} ${fact.reason}`;
        return;
      case 'handshake':
      case 'batch':
      case 'run':
        return;
    }
    const { steps } = invocation ?? story;
    if (story.steps.length + [...story.invocations.values()].reduce((sum, it) => sum + it.steps.length, 0) < MAX_STEPS)
      steps.push(fact);
    else story.more += 1;
  }

  #label(connection, path) {
    const query = path?.split('?')[1];
    if (this.labels.size > 5000) this.labels.delete(this.labels.keys().next().value);
    if (!query) return;
    const pairs = [...new URLSearchParams(query)].map(([name, value]) => `${name}=${cut(value, 24)}`);
    this.labels.set(connection, cut(pairs.join(' '), 48));
  }
}

function count(rates, name) {
  if (!rates.has(name)) {
    // Names come and go with connections.
    if (rates.size > 5000) rates.delete(rates.keys().next().value);
    rates.set(name, new Rate());
  }
  return rates.get(name);
}

/** The beginning of a text, by characters. */
export function cut(text, length) {
  const characters = [...text.slice(0, 2 * length + 2)];
  return characters.length > length ? `${characters.slice(0, length - 1).join('')}…` : text;
}

/** How long a story took, in ms. */
export const durationOf = (story) => story.done?.ms ?? story.answer?.ms ?? (story.end - story.at) / 1000;

/** Whether a story passes the filters. */
export function passes(story, { connection, function: name, errors }) {
  return (
    (!connection || story.connection === connection || touches(story, connection)) &&
    (!name || story.functions.has(name)) &&
    (!errors || Boolean(story.error))
  );
}

/** Whether a story posted to a connection. */
function touches(story, connection) {
  const steps = [story.steps, ...[...story.invocations.values()].map((it) => it.steps)].flat();
  return steps.some((step) => step.kind === 'post' && step.connection === connection);
}

/** Indents JSON without changing any of its values: numbers keep their digits, and names may occur twice. */
export function indented(text) {
  const trimmed = text.trim();
  if (!/^[[{]/.test(trimmed)) return text;
  try {
    JSON.parse(trimmed);
  } catch {
    return text;
  }
  let depth = 0;
  const line = () => `\n${'  '.repeat(depth)}`;
  return trimmed.replace(/"(?:[^"\\]|\\.)*"|[{}[\],:]|\s+|[^\s"{}[\],:]+/g, (token, offset) => {
    if (/^\s/.test(token)) return '';
    if (token === ':') return ': ';
    if (token === ',') return `,${line()}`;
    if (token === '{' || token === '[') {
      if (/^.\s*[\]}]/.test(trimmed.slice(offset))) return token;
      depth += 1;
      return token + line();
    }
    if (token === '}' || token === ']') {
      if (/[[{]\s*$/.test(trimmed.slice(0, offset).slice(-200))) return token;
      depth -= 1;
      return line() + token;
    }
    return token;
  });
}
