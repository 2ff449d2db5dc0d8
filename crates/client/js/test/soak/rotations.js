// Many clients that talk while they rotate: `make soak-rotation`. They have the times of API Gateway, 60 times as fast, so this
// needs an idle machine. It is not among the tests that CI runs, because a busy machine is as late as a slow client.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { client, soon, start } from '../stack.js';

const MINUTE = 60_000;

/** So many clients share a topic. */
const GROUP = 10;

/** How many times as fast the gateway's clock runs. */
const SPEED = 60;

/**
 * Runs so many clients until each has rotated three times, and returns what happened. All of them together send `rate`
 * messages a second.
 */
async function rotate(t, count, rate) {
  const rotations = 3;
  const stack = await start(t, ['--clock', `x${SPEED}`, '--env', 'MAX_CONNECTIONS_PER_USER=0']);
  const began = Date.now();
  // A second here is a minute there, and a busy machine needs one. So the clients ping earlier than they do by default.
  const heartbeat = (5 * MINUTE) / SPEED;
  const times = { lifetime: (120 * MINUTE) / SPEED, heartbeat, timeout: 10_000, maxDelay: 2000 };
  /** The messages that were sent: who has to hear them, and who has. */
  const messages = new Map();
  const isHere = (events, rotated) => events.filter((event) => event.name === 'connected' && event.rotated === rotated);
  const members = [];

  async function join(number) {
    const it = client(t, stack.url(`?userId=${number}`), times);
    const group = Math.floor(number / GROUP);
    const member = { it, number, group, rotations: () => isHere(it.events, true).length, least: Infinity };
    const hear = ({ data }) => {
      const message = messages.get(data);
      message.heard.set(number, (message.heard.get(number) ?? 0) + 1);
    };
    const topics = [`room.${group}`, `hall.${group}`, '@me'];
    await soon(Promise.all(topics.map((name) => it.topic(name).subscribe(hear).ready)), `client ${number}`, 60_000);
    members.push(member);
  }
  for (let number = 0; number < count; number += GROUP) {
    await Promise.all(Array.from({ length: Math.min(GROUP, count - number) }, (_, index) => join(number + index)));
  }

  /** Sends a message: to a topic with history, to one without, or to the next client. */
  function say({ it, number, group }, serial) {
    const text = `${['room', 'hall', 'direct'][serial % 3]} ${serial}`;
    const receiver = (number + 1) % count;
    const all = members.filter((member) => member.group === group).map((member) => member.number);
    messages.set(text, { receivers: serial % 3 === 2 ? [receiver] : all, heard: new Map() });
    if (serial % 3 === 2) return it.send(`${receiver}`, text);
    return it.topic(`${serial % 3 ? 'hall' : 'room'}.${group}`).publish(text);
  }

  const isOpen = ({ sockets }) => sockets.filter((socket) => socket.readyState === socket.OPEN).length;
  const looking = setInterval(() => {
    for (const member of members) member.least = Math.min(member.least, isOpen(member.it));
  }, 20);
  const acks = [];
  for (let serial = 0; members.some((member) => member.rotations() < rotations); serial += 1) {
    acks.push(say(members[Math.floor(Math.random() * count)], serial));
    await sleep(1000 / rate);
  }
  await soon(Promise.all(acks), 'the last acks', 60_000);
  // What comes last is behind everything else of its topic.
  const isComplete = () => [...messages.values()].every(({ receivers, heard }) => heard.size >= receivers.length);
  for (const since = Date.now(); !isComplete() && Date.now() - since < 20_000; ) await sleep(100);
  clearInterval(looking);

  const heard = [...messages].flatMap(([text, { receivers, heard }]) =>
    receivers.map((number) => ({ text, number, times: heard.get(number) ?? 0 })),
  );
  const others = members.flatMap(({ it, number }) =>
    it.events.filter(({ name }) => name !== 'connected').slice(1).map((event) => ({ number, ...event })),
  );
  return {
    clients: count,
    seconds: Math.round((Date.now() - began) / 1000),
    messages: messages.size,
    deliveries: heard.length,
    rotations: members.reduce((sum, member) => sum + member.rotations(), 0),
    fewestRotations: Math.min(...members.map((member) => member.rotations())),
    missed: heard.filter(({ times }) => times === 0).map(({ text, number }) => `${text} at ${number}`),
    twice: heard.filter(({ times }) => times > 1).map(({ text, number }) => `${text} at ${number}`),
    sentAgain: members.flatMap(({ it }) => it.sent.filter(({ again }) => again)).length,
    fewestConnections: Math.min(...members.map(({ least }) => least)),
    cuts: stack.lines.filter((line) => /gateway .*(1001|Going away)/i.test(line)).length,
    otherEvents: others.map((event) => JSON.stringify(event)),
  };
}

test('many clients rotate at the times of API Gateway', { timeout: 900_000 }, async (t) => {
  const figures = await rotate(t, Number(process.env.CLIENTS ?? 300), Number(process.env.RATE ?? 10));
  console.log(JSON.stringify(figures, undefined, 1));
  const { missed, twice, otherEvents, cuts, fewestConnections } = figures;
  assert.deepEqual({ missed, twice, otherEvents, cuts }, { missed: [], twice: [], otherEvents: [], cuts: 0 });
  assert.ok(fewestConnections >= 1, `${fewestConnections}`);
});
