// Hooks for React. react.d.ts describes them.
import { useCallback, useEffect, useRef, useState, useSyncExternalStore } from 'react';
import { presence } from './presence.js';

const NOBODY = { users: new Map(), count: 0, isCurrent: false };

export function useConnectionState(client) {
  const subscribe = useCallback(
    (changed) => {
      const stops = ['connecting', 'connected', 'closed'].map((name) => client.on(name, changed));
      return () => stops.forEach((stop) => stop());
    },
    [client],
  );
  const state = () => client.state;
  return useSyncExternalStore(subscribe, state, state);
}

/** The server may also end a subscription later, because a fresh token grants less. */
const whenEnded = (client, name, failed) => client.on('error', ({ topic, error }) => topic === name && failed(error));

export function useTopic(client, name, { last = name.endsWith('*') ? undefined : 50, keep = 500 } = {}) {
  const [messages, setMessages] = useState([]);
  const [error, setError] = useState();
  useEffect(() => {
    let isOver = false;
    const failed = (reason) => isOver || setError(reason);
    const subscription = client
      .topic(name)
      .subscribe((message) => setMessages((all) => [...all, message].slice(-keep)), { last });
    subscription.ready.catch(failed);
    const stop = whenEnded(client, name, failed);
    return () => {
      isOver = true;
      stop();
      subscription.unsubscribe();
      setMessages([]);
      setError(undefined);
    };
  }, [client, name, last, keep]);
  const publish = useCallback((message) => client.topic(name).publish(message), [client, name]);
  return { messages, error, publish };
}

export function usePresence(client, name, { data } = {}) {
  const [members, setMembers] = useState(NOBODY);
  const [error, setError] = useState();
  const own = useRef();
  const text = JSON.stringify(data);
  useEffect(() => {
    let isOver = false;
    const failed = (reason) => isOver || setError(reason);
    const it = presence(client.topic(name), setMembers, { data });
    it.ready.catch(failed);
    const stop = whenEnded(client, name, failed);
    own.current = { it, text, failed };
    return () => {
      isOver = true;
      stop();
      it.stop();
      setMembers(NOBODY);
      setError(undefined);
    };
    // What the user says may change without an end of the presence.
  }, [client, name]);
  useEffect(() => {
    const { current } = own;
    if (current.text === text) return;
    current.text = text;
    current.it.set(data).then(() => current.failed(undefined), current.failed);
  }, [text]);
  const { users, count, isCurrent } = members;
  return { users, count, isCurrent, error };
}
