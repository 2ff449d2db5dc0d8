// Hooks for React. react.d.ts describes them.
import { useCallback, useEffect, useState, useSyncExternalStore } from 'react';

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

export function useTopic(client, name, { last = 50, keep = 500 } = {}) {
  const [messages, setMessages] = useState([]);
  const [error, setError] = useState();
  useEffect(() => {
    let isOver = false;
    const subscription = client
      .topic(name)
      .subscribe((message) => setMessages((all) => [...all.slice(1 - keep), message]), { last });
    subscription.ready.catch((reason) => isOver || setError(reason));
    return () => {
      isOver = true;
      subscription.unsubscribe();
      setMessages([]);
      setError(undefined);
    };
  }, [client, name, last, keep]);
  const publish = useCallback((message) => client.topic(name).publish(message), [client, name]);
  return { messages, error, publish };
}
