import { publish, subscribe, unsubscribe } from "./topics.mjs";

export async function handler({ requestContext: { connectionId, domainName, stage }, body }) {
  const { type, topic, message } = JSON.parse(body);
  switch (type) {
    case "subscribe":
      await subscribe(topic, connectionId);
      break;
    case "stop":
      await unsubscribe(connectionId, topic);
      break;
    case "message":
      await publish(`https://${domainName}/${stage}`, topic, message);
      break;
    default:
      return { statusCode: 400 };
  }
  return { statusCode: 200 };
}
