import { unsubscribe } from "./topics.mjs";

export async function handler({ requestContext: { connectionId } }) {
  await unsubscribe(connectionId);
  return { statusCode: 200 };
}
