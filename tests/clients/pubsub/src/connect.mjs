import { subscribe } from "./topics.mjs";

// Every connection listens to this topic.
export async function handler({ requestContext: { connectionId } }) {
  await subscribe("INITIAL_CONNECTION", connectionId);
  return { statusCode: 200 };
}
