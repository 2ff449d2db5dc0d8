import type { Client, Message, Publication, SwitchboardError } from './index.js';

/** The state of a client. The component renders again when it changes. */
export function useConnectionState(client: Client): Client['state'];

/** Subscribes while the component is mounted: to the newest `last` messages and to all that follow; it keeps `keep`. */
export function useTopic<T = unknown>(
  client: Client,
  name: string,
  options?: { last?: number; keep?: number },
): { messages: Message<T>[]; error: SwitchboardError | undefined; publish(message: T): Publication };
