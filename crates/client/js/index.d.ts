/** A client of Switchboard: it reconnects, resumes, keeps order, and moves to a new connection before API Gateway cuts. */

/** The place of a message in its topic. */
export interface Position {
  /** The name of the run of numbers. */
  epoch: string;
  /** The number of the message, from 1. */
  seq: number;
}

export interface Options {
  /**
   * Returns the token for the next handshake, or nothing. The client asks before each attempt: `attempt` counts from 1
   * since the last stable connection, and `reason` says in words why a new connection is needed.
   */
  token?(about: { attempt: number; reason: string | undefined }): MaybePromise<string | null | undefined | void>;
  /** The class of sockets, where the platform has none: `ws` in Node 20, for example. */
  WebSocket?: new (url: string) => any;
  /** The most messages without an ack. A further one is dropped. Default: 1000. */
  buffer?: number;
  /** The client closes after this many refused connections in a row. Default: 20, which takes 4 minutes on average. */
  refusals?: number;
  /** How long an answer may take, in ms. Default: 10000. */
  timeout?: number;
  /** The longest pause between two attempts, in ms. Default: 30000. */
  maxDelay?: number;
  /** The longest time between two pings, in ms. API Gateway cuts a connection that is idle for 600000. Default: 540000. */
  heartbeat?: number;
  /** How long the gateway lets a connection live, in ms. A new one replaces it at 65 to 95 % of that. Default: 7200000. */
  lifetime?: number;
  /** The most bytes of a frame. Browsers cannot split a message into frames. Default: 32768, which is API Gateway's. */
  frameLimit?: number;
}

export interface Message<T = unknown> extends Partial<Position> {
  topic: string;
  /** What was published. */
  data: T;
  /** The user that sent it, if the server says so: on topics with history, and for direct messages. */
  senderId?: string;
  /** When the server took its number, in ms since 1970. Only messages from the history have it. */
  at?: number;
}

/** What an ack says. */
export interface Ack extends Partial<Position> {
  id: string;
  /** How many connections got the message. */
  delivered?: number;
  /** There are more receivers, and the server goes on. */
  continued?: boolean;
  /** The message was kept before: this was a repetition. */
  duplicate?: boolean;
  /** A direct message is kept for a user that is away. */
  stored?: boolean;
}

/** Resolves with the ack. If nobody waits for it, a failure is silent. */
export interface Publication<A = Ack> extends Promise<A> {
  /** The id, under which the server keeps the message once. */
  readonly id: string;
  /** What happened at once: it went out, it waits in the buffer, or it was dropped (then the promise says why). */
  readonly status: 'sent' | 'buffered' | 'dropped';
}

export interface Range {
  after?: Position;
  before?: Position;
  /** 1 to 1000. Default: 100. */
  limit?: number;
}

export interface Page<T = unknown> {
  epoch: string;
  messages: Message<T>[];
  /** Whether there is more in the same direction. */
  more: boolean;
}

export interface Subscription {
  /** Resolves when the handler hears everything that is published, and fails when the server refuses that. */
  readonly ready: Promise<{
    /** Whether the topic keeps its messages. Without that, what is published during a reconnect is missed. */
    history: boolean;
    /** For a subscription with `after`: whether nothing is missing behind that position. */
    recovered?: boolean | undefined;
  }>;
  /** The topic's position. Keep it to go on from there with `after`. */
  readonly position: Position | undefined;
  unsubscribe(): void;
}

export interface Topic<T = unknown> {
  readonly name: string;
  /**
   * Calls the handler for each message, in order and once: after a position, from the newest `last` (1 to 100), or from
   * now on.
   */
  subscribe(handler: (message: Message<T>) => void, range?: { last?: number; after?: Position }): Subscription;
  /** Messages of one topic go out one after another. An `id` of one's own makes a repetition recognisable. */
  publish(message: T, more?: { id?: string }): Publication;
  /**
   * Publishes 1 to 100 messages in one frame, and resolves with the ack of each. A topic with history keeps all of them or
   * none. The frame counts as one message in the buffer, and must not be larger than one.
   */
  publishAll(messages: readonly T[], more?: { id?: string }): Publication<Ack[]>;
  /** Reads the history: behind a position in order, before one, or the newest ones first. */
  history(range?: Range): Promise<Page<T>>;
}

export interface Events {
  /** There is no connection, and the next attempt is `delay` ms away. */
  connecting: { attempt: number; delay: number; reason?: string };
  /** There is a connection. `rotated`: it replaced another one that was still open. */
  connected: { rotated: boolean };
  /** Nothing was missed in this topic: everything behind `from` was delivered, or is on its way to the handler. */
  recovered: { topic: string; from: Position; to: Position };
  /**
   * Something may have been missed in this topic. `expired`: the server no longer has it. `no_history`: the topic does not
   * keep its messages. Otherwise it is the code of an error.
   */
  gap: { topic: string; from: Position | undefined; to: Position | undefined; reason: string };
  /** The server refused a subscription, which has ended with that. */
  error: { topic: string; error: SwitchboardError };
  /** The client has ended. `closed`: the application asked for it. `refused`: the server refused it too often. */
  closed: { code: 'closed' | 'refused'; reason: string };
}

export interface Client {
  readonly state: 'connecting' | 'connected' | 'closed';
  /** Calls the handler at each event. Returns a function that ends it. */
  on<K extends keyof Events>(name: K, handler: (event: Events[K]) => void): () => void;
  /** A topic. `@me` is the user's own address: direct messages. */
  topic<T = unknown>(name: string): Topic<T>;
  /** Sends a direct message. */
  send(userId: string, body: unknown, more?: { id?: string }): Publication;
  /** Tells the client that the network or the application is back. Browsers do it by themselves. */
  wake(): void;
  close(): void;
}

/** The server refused something, or the client could not send it. */
export class SwitchboardError extends Error {
  /** A code of the server, or `too_large`, `buffer_full`, `closed`, `refused`. */
  readonly code: string;
  readonly temporary: boolean;
  readonly requestId: string | undefined;
  constructor(code: string, message: string, more?: { temporary?: boolean; requestId?: string });
}

/** Connects to an address of `wss://` or `ws://`. */
export function connect(url: string, options?: Options): Client;

type MaybePromise<T> = T | Promise<T>;
