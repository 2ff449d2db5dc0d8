// npm's ws against an API, for the conformance suite: conformance.mjs CASE WS_URL HTTP_URL
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { once } from "node:events";
import WebSocket from "ws";

const [name, url] = process.argv.slice(2);

const returning = (response) => `${url}?do=respond&response=${encodeURIComponent(JSON.stringify(response))}`;

async function connect(options) {
  const socket = new WebSocket(url, options);
  await once(socket, "open");
  return socket;
}

async function ask(socket, message) {
  socket.send(JSON.stringify(message));
  const [data, isBinary] = await once(socket, "message");
  assert.equal(isBinary, false);
  return JSON.parse(data);
}

const cases = {
  async talks() {
    // The library offers permessage-deflate by itself.
    const socket = await connect();
    const event = await ask(socket, { action: "echo", text: "žluťoučký 🐎" });
    assert.equal(event.requestContext.routeKey, "echo");
    assert.equal(JSON.parse(event.body).text, "žluťoučký 🐎");
    socket.close();
  },

  async compresses() {
    for (const perMessageDeflate of [
      true,
      { threshold: 0 },
      { threshold: 0, serverMaxWindowBits: 9, serverNoContextTakeover: true, clientNoContextTakeover: true },
    ]) {
      const socket = await connect({ perMessageDeflate });
      assert.match(socket.extensions, /permessage-deflate/);
      for (const text of ["", "žluťoučký 🐎", "žluťoučký 🐎".repeat(4000), "again", "again"]) {
        assert.equal(JSON.parse((await ask(socket, { action: "echo", text })).body).text, text);
      }
      // Too long for a frame in either direction, compressed or not.
      const digest = (_, index) => createHash("sha256").update(`${index}`).digest("hex");
      const noise = Array.from({ length: 1400 }, digest).join("");
      socket.send(`{"action":"echo","text":"${noise.slice(0, 30000)}`, { fin: false });
      socket.send(noise.slice(30000, 60000), { fin: false });
      socket.send(`${noise.slice(60000)}"}`);
      const [data] = await once(socket, "message");
      assert.equal(JSON.parse(JSON.parse(data).body).text, noise);
      socket.close();
    }
  },

  async isRefused() {
    const socket = new WebSocket(returning({ statusCode: 403 }));
    socket.on("error", () => {});
    const [, response] = await once(socket, "unexpected-response");
    assert.equal(response.statusCode, 403);
    response.destroy();
  },

  async pings() {
    const socket = await connect();
    socket.ping("are you there");
    const [payload] = await once(socket, "pong");
    assert.equal(payload.toString(), "are you there");
    socket.close();
  },

  async isClosed() {
    const sender = await connect();
    sender.send(Buffer.from('{"action":"echo"}'));
    assert.equal((await once(sender, "close"))[0], 1003);
    const leaver = await connect();
    leaver.close(4001, "bye");
    assert.equal((await once(leaver, "close"))[0], 4001);
  },

  async hasASubprotocol() {
    const headers = { "Sec-WebSocket-Protocol": "two" };
    const chosen = new WebSocket(returning({ statusCode: 200, headers }), ["one", "two"]);
    await once(chosen, "open");
    assert.equal(chosen.protocol, "two");
    chosen.close();
    // Without an answer to its offer the client gives up by itself.
    const [error] = await once(new WebSocket(url, ["one", "two"]), "error");
    assert.match(error.message, /no subprotocol/);
  },
};

await cases[name]();
