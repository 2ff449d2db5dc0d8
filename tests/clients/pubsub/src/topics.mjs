// Who listens to what: a row for each subscription.
import { randomUUID } from "node:crypto";
import { ApiGatewayManagementApiClient, PostToConnectionCommand } from "@aws-sdk/client-apigatewaymanagementapi";
import { BatchWriteItemCommand, DynamoDBClient, PutItemCommand, QueryCommand } from "@aws-sdk/client-dynamodb";

const dynamodb = new DynamoDBClient();
const TableName = process.env.TOPICS_TABLE;
const TWO_HOURS = 2 * 60 * 60;

export async function subscribe(topic, connectionId) {
  const Item = {
    topic: { S: topic },
    connectionId: { S: connectionId },
    subscriptionId: { S: randomUUID() },
    ttl: { N: `${Math.floor(Date.now() / 1000) + TWO_HOURS}` },
  };
  await dynamodb.send(new PutItemCommand({ TableName, Item }));
  console.log(`${connectionId} listens to ${topic}`);
}

// Without a topic the connection leaves all of them.
export async function unsubscribe(connectionId, topic) {
  const { Items } = await dynamodb.send(
    new QueryCommand({
      TableName,
      IndexName: "connections",
      KeyConditionExpression: "connectionId = :id",
      ExpressionAttributeValues: { ":id": { S: connectionId } },
    }),
  );
  const left = Items.filter((item) => !topic || item.topic.S === topic);
  const keys = left.map(({ topic, connectionId }) => ({ topic, connectionId }));
  if (keys.length > 0) {
    const deletes = keys.map((Key) => ({ DeleteRequest: { Key } }));
    await dynamodb.send(new BatchWriteItemCommand({ RequestItems: { [TableName]: deletes } }));
  }
  console.log(`${connectionId} left ${keys.length} topic(s)`);
}

export async function publish(endpoint, topic, data) {
  const gateway = new ApiGatewayManagementApiClient({ endpoint });
  const { Items } = await dynamodb.send(
    new QueryCommand({
      TableName,
      KeyConditionExpression: "topic = :topic",
      ExpressionAttributeValues: { ":topic": { S: topic } },
    }),
  );
  await Promise.all(
    Items.map(({ connectionId, subscriptionId }) => {
      const Data = JSON.stringify({ id: subscriptionId.S, payload: { data }, type: "data" });
      return gateway.send(new PostToConnectionCommand({ ConnectionId: connectionId.S, Data }));
    }),
  );
}
