import type { Client, Options } from './index.js';

export interface SharedOptions extends Options {
  /** Tabs with the same name share one connection. Default: the address. Tabs of different users need different names. */
  name?: string;
}

/**
 * Connects as `connect` does, but all tabs of this browser with the same name share one connection. A wrong address does not
 * throw: it ends the client with `refused`.
 */
export function connectShared(url: string, options?: SharedOptions): Client;
