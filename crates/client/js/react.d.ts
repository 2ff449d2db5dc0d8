import type { Client, Message, Publication, SwitchboardError } from './index.js';
import type { Members } from './presence.js';

/** The state of a client. The component renders again when it changes. */
export function useConnectionState(client: Client): Client['state'];

/**
 * Subscribes while the component is mounted: to the newest `last` messages and to all that follow; it keeps `keep`. Default: 50
 * and 500. A pattern has no newest messages, so `last` with a pattern is an `error`.
 * The server may also end a subscription later, because a fresh token grants less. Then `error` says why.
 */
export function useTopic<T = unknown>(
  client: Client,
  name: string,
  options?: { last?: number; keep?: number },
): { messages: Message<T>[]; error: SwitchboardError | undefined; publish(message: T): Publication };

/** Tells who is in a topic while the component is mounted. `data` is what the user says about itself, and may change. */
export function usePresence<T = unknown>(
  client: Client,
  name: string,
  options?: { data?: T | undefined },
): Pick<Members<T>, 'users' | 'count' | 'isCurrent'> & { error: SwitchboardError | undefined };
