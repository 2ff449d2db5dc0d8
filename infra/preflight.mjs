// Asks AWS whether a deployment could succeed, before it changes anything: node infra/preflight.mjs <template>
// The framework depends on the same clients, so they are already installed.
import { readFileSync } from 'node:fs';
import { APIGatewayClient, GetAccountCommand } from '@aws-sdk/client-api-gateway';
import { GetAccountSettingsCommand, LambdaClient } from '@aws-sdk/client-lambda';
import { GetCallerIdentityCommand, STSClient } from '@aws-sdk/client-sts';

const settings = { region: process.env.REGION, maxAttempts: 2 };

async function ask(client, command, instead) {
  try {
    return await client.send(command);
  } catch (error) {
    console.error(`switchboard: ${instead} (${error.name}: ${error.message.split('\n')[0]})`);
    process.exit(1);
  }
}

const { Account } = await ask(
  new STSClient(settings),
  new GetCallerIdentityCommand({}),
  'AWS does not know you: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY',
);

const [template] = process.argv.slice(2);
if (template) {
  // This is only advice, so a deployment does not need the permission to ask.
  const limits = await new LambdaClient(settings).send(new GetAccountSettingsCommand({})).catch(() => undefined);
  const concurrency = limits?.AccountLimit?.ConcurrentExecutions;
  if (concurrency < 100) {
    console.error(
      `switchboard: Warning: account ${Account} runs at most ${concurrency} functions at once in this region, and further ` +
        'handshakes and frames fail. Ask for more under Service Quotas before a launch.',
    );
  }
}
const conditions = template ? JSON.parse(readFileSync(template)).Conditions : {};
const [accessLogs, on] = conditions.AccessLogs?.['Fn::Equals'] ?? ['off', 'on'];
if (accessLogs === on) {
  const { cloudwatchRoleArn } = await ask(
    new APIGatewayClient(settings),
    new GetAccountCommand({}),
    'AWS does not let you read the settings of API Gateway',
  );
  if (!cloudwatchRoleArn) {
    console.error(
      `switchboard: API Gateway may not write logs in account ${Account}. Give it a role once, as infra/README.md says, ` +
        'or deploy with ARGS=--param=accessLogs=off.',
    );
    process.exit(1);
  }
}
