import { publish } from "./topics.mjs";

// A backend puts an event into the table, and its stream brings it here.
export async function handler({ Records }) {
  for (const { eventName, dynamodb } of Records) {
    if (eventName === "INSERT") {
      await publish(process.env.ENDPOINT, dynamodb.NewImage.topic.S, dynamodb.NewImage.data.S);
    }
  }
}
