// Asks AWS, before anything is touched, whether a deployment could succeed: node infra/preflight.mjs <template>
// The clients are those that the framework itself depends on.
import { readFileSync } from 'node:fs';
import { APIGatewayClient, GetAccountCommand } from '@aws-sdk/client-api-gateway';
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
const conditions = template ? JSON.parse(readFileSync(template)).Conditions : {};
const [accessLogs, on] = conditions.AccessLogs?.['Fn::Equals'] ?? ['off', 'on'];
if (accessLogs === on) {
  const { cloudwatchRoleArn } = await ask(
    new APIGatewayClient(settings),
    new GetAccountCommand({}),
    'API Gateway does not tell its settings in this account',
  );
  if (!cloudwatchRoleArn) {
    console.error(
      `switchboard: account ${Account} lets API Gateway write no logs: give it a role once, as infra/README.md says, ` +
        'or deploy with ARGS=--param=accessLogs=off',
    );
    process.exit(1);
  }
}
