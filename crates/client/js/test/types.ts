// `tsc --strict` must accept this, and must refuse each line under a `@ts-expect-error`.
import { connect, SwitchboardError, type Client, type Message, type Position } from 'switchboard-client';
import { presence, type Members } from 'switchboard-client/presence';
import { connectShared } from 'switchboard-client/shared';
import { useConnectionState, usePresence, useTopic } from 'switchboard-client/react';

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

room.publishAll([{ text: 'hi' }, { text: 'there' }]).then(([first, second]) => console.log(first?.seq, second?.seq));
// @ts-expect-error: the messages have another type.
room.publishAll(['hi']);

const stop: () => void = client.on('gap', ({ topic, reason }) => console.log(topic, reason));
stop();
// @ts-expect-error: an event that does not exist.
client.on('open', () => {});

const shared: Client = connectShared('wss://example.com/dev', { name: 'user 1', heartbeat: 60_000 });
shared.topic<Line>('room.7').publish({ text: 'hi' });

interface Word {
  status: 'here' | 'away';
}
const here = presence(
  room,
  ({ users, count, isCurrent, joined }: Members<Word>) => console.log(users?.get('1')?.status, count, isCurrent, joined),
  { data: { status: 'here' } },
);
here.ready.then(() => console.log(here.users?.size, here.count));
here.set({ status: 'away' });
here.set();
// @ts-expect-error: the data has another type.
here.set({ status: 'gone' });
// @ts-expect-error: nobody but the server knows who is here.
here.users.set('2', undefined);
here.stop();

export function Room() {
  const state: 'connecting' | 'connected' | 'closed' = useConnectionState(client);
  const { messages, publish } = useTopic<Line>(client, 'room.7', { last: 20 });
  publish({ text: state });
  const { users, count, error } = usePresence<Word>(client, 'room.7', { data: { status: 'here' } });
  if (error || !users) return `${error?.code} ${count}`;
  return messages.map(({ data }) => data.text).join('\n');
}
