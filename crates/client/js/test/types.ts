// `tsc --strict` must accept this, and must refuse each line under a `@ts-expect-error`.
import { connect, SwitchboardError, type Client, type Message, type Position } from 'switchboard-client';
import { useConnectionState, useTopic } from 'switchboard-client/react';

interface Line {
  text: string;
}

const client: Client = connect('wss://example.com/dev', {
  token: async ({ attempt, reason }) => (attempt > 3 ? undefined : `${reason}`),
  heartbeat: 60_000,
});
// @ts-expect-error: an option that does not exist.
connect('wss://example.com/dev', { heartbeats: 1 });

const room = client.topic<Line>('room.7');
let position: Position | undefined;
const subscription = room.subscribe((message: Message<Line>) => console.log(message.data.text, message.seq), {
  last: 20,
});
position = subscription.position;
if (position) room.subscribe(() => {}, { after: position });
// @ts-expect-error: the message has another type.
room.publish('hi');

const post = room.publish({ text: 'hi' });
const status: 'sent' | 'buffered' | 'dropped' = post.status;
post.then((ack) => console.log(status, ack.delivered, ack.duplicate));
post.catch((error: unknown) => error instanceof SwitchboardError && console.log(error.code, error.temporary));

const stop: () => void = client.on('gap', ({ topic, reason }) => console.log(topic, reason));
stop();
// @ts-expect-error: an event that does not exist.
client.on('open', () => {});

export function Room() {
  const state: 'connecting' | 'connected' | 'closed' = useConnectionState(client);
  const { messages, publish } = useTopic<Line>(client, 'room.7', { last: 20 });
  publish({ text: state });
  return messages.map(({ data }) => data.text).join('\n');
}
