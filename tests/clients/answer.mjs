#!/usr/bin/env node
// A Lambda function that answers each message as AWS's own examples do: with an endpoint that it makes of the event.
import { ApiGatewayManagementApiClient, PostToConnectionCommand } from "@aws-sdk/client-apigatewaymanagementapi";
import { serve } from "./runtime.mjs";

await serve(async ({ requestContext: { domainName, stage, connectionId }, body }) => {
  const client = new ApiGatewayManagementApiClient({ endpoint: `https://${domainName}/${stage}` });
  await client.send(new PostToConnectionCommand({ ConnectionId: connectionId, Data: `you said ${body}` }));
  return { statusCode: 200 };
});
