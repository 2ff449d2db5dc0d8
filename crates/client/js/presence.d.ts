import type { Topic } from './index.js';

/** Who is in a topic. */
export interface Members<T = unknown> {
  topic: string;
  /** What each member says about itself, by user. It is absent where the server only counts: beyond 1,000 members. */
  users: ReadonlyMap<string, T | undefined> | undefined;
  /** How many members there are. */
  count: number;
  /**
   * Whether this is true now. It is false while there is no connection: then it shows who was there. A list of the new
   * connection makes it true again.
   */
  isCurrent: boolean;
  /** The users that came, left, or say something else since the call before. */
  joined: string[];
  left: string[];
  changed: string[];
}

export interface Presence<T = unknown> {
  /** Resolves with the first list, and fails when the server refuses to tell who is there. */
  readonly ready: Promise<void>;
  readonly users: ReadonlyMap<string, T | undefined> | undefined;
  readonly count: number;
  readonly isCurrent: boolean;
  /** Changes what this user says: any JSON of at most 1024 bytes. Without a value, the user says nothing any more. */
  set(data?: T): Promise<void>;
  /** Asks for the list once more. */
  refresh(): Promise<void>;
  /** Ends it. The user is a member as long as somebody listens to the topic. */
  stop(): void;
}

/**
 * Tells who is in a topic, and calls the handler at each change. It listens to the topic, so the user becomes a member.
 * `data` is what the user says about itself. If several watchers share a connection, the last word counts.
 */
export function presence<T = unknown>(
  topic: Topic<any>,
  handler: (members: Members<T>) => void,
  options?: { data?: T | undefined },
): Presence<T>;
