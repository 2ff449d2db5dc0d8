// Asks AWS whether a deployment could succeed, before it changes anything: node infra/preflight.mjs <template>
// It also stops a deployment that would lose what the stage has now. The variable DROP names what may go.
// The framework depends on the same clients, so they are already installed.
import { readFileSync } from 'node:fs';
import { APIGatewayClient, GetAccountCommand } from '@aws-sdk/client-api-gateway';
import { CloudFormationClient, GetTemplateCommand } from '@aws-sdk/client-cloudformation';
import { GetAccountSettingsCommand, LambdaClient } from '@aws-sdk/client-lambda';
import { GetCallerIdentityCommand, STSClient } from '@aws-sdk/client-sts';

const settings = { region: process.env.REGION, maxAttempts: 2 };

// Lambda leaves this many executions to the functions that reserve none, in an account that has so many.
const LEAST_UNRESERVED = 100;

function stop(text) {
  console.error(`switchboard: ${text}`);
  process.exit(1);
}

async function ask(client, command, instead) {
  try {
    return await client.send(command);
  } catch (error) {
    stop(`${instead} (${error.name}: ${error.message.split('\n')[0]})`);
  }
}

const { Account } = await ask(
  new STSClient(settings),
  new GetCallerIdentityCommand({}),
  'AWS does not know you: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY',
);

// The template that the stage was deployed with, or an empty one.
async function deployed() {
  const [, service] = readFileSync('serverless.yml', 'utf8').match(/^service: *(\S+)/m);
  const command = new GetTemplateCommand({ StackName: `${service}-${process.env.STAGE}` });
  try {
    const { TemplateBody } = await new CloudFormationClient(settings).send(command);
    return JSON.parse(TemplateBody);
  } catch (error) {
    if (error.name === 'ValidationError' && error.message.includes('does not exist')) return {};
    // A body that is not JSON is in the message of its error.
    const reason = error instanceof SyntaxError ? 'it is not JSON' : `${error.name}: ${error.message.split('\n')[0]}`;
    return stop(`The template of the stage cannot be read, so nobody knows what this deployment would drop (${reason}).`);
  }
}

// The settings that a forgotten variable or parameter would take away, with their values; an empty one is not set.
function kept({ Conditions = {}, Resources = {} }) {
  const compared = (name) => Conditions[name]?.['Fn::Not']?.[0]?.['Fn::Equals']?.[0];
  const variables = Resources.ConnectLambdaFunction?.Properties?.Environment?.Variables ?? {};
  const routes = Object.values(Resources).filter((it) => it.Type === 'AWS::ApiGatewayV2::Route');
  const connect = routes.find((it) => it.Properties.RouteKey === '$connect')?.Properties.AuthorizationType ?? 'NONE';
  return {
    domain: compared('CustomDomain'),
    alarmEmail: compared('AlarmEmail'),
    keys: variables.TOKEN_KEYS || variables.TOKEN_KEYS_PARAMETER || variables.TOKEN_KEYS_URL,
    authorizer: connect === 'NONE' ? '' : connect,
    tokenAudience: variables.TOKEN_AUDIENCE,
    tokenIssuer: variables.TOKEN_ISSUER,
    allowedOrigins: variables.ALLOWED_ORIGINS,
  };
}

function checkKept(before, after) {
  const allowed = (process.env.DROP ?? '').split(/[\s,]+/).filter(Boolean);
  const unknown = allowed.filter((name) => !(name in after));
  if (unknown.length > 0) stop(`DROP has ${unknown.join(', ')}, and it may have ${Object.keys(after).join(', ')}.`);
  const dropped = Object.keys(after).filter((name) => before[name] && !after[name] && !allowed.includes(name));
  if (dropped.length > 0) {
    stop(
      `The stage '${process.env.STAGE}' has ${dropped.join(', ')}, and this deployment would take that away. Set it under ` +
        `\`params\` in serverless.yml, as a variable or in ARGS, or let it go with DROP=${dropped.join(',')}.`,
    );
  }
}

// How many executions the functions of a template reserve.
function reserved({ Resources = {} }) {
  const functions = Object.values(Resources).filter((it) => it.Type === 'AWS::Lambda::Function');
  return functions.reduce((sum, it) => sum + (it.Properties.ReservedConcurrentExecutions ?? 0), 0);
}

function checkConcurrency({ ConcurrentExecutions: limit, UnreservedConcurrentExecutions: unreserved }, before, after) {
  if (limit < 100) {
    console.error(
      `switchboard: Warning: account ${Account} runs at most ${limit} functions at once in this region, and further ` +
        'handshakes and frames fail. Ask for more under Service Quotas before a launch.',
    );
  }
  const room = unreserved + reserved(before) - Math.min(LEAST_UNRESERVED, limit);
  if (reserved(after) > room) {
    stop(
      `The functions reserve ${reserved(after)} executions (connectConcurrency and disconnectConcurrency), and account ` +
        `${Account} has room for ${Math.max(0, room)} in this region. Reserve less, or ask for more under Service Quotas.`,
    );
  }
}

const [path] = process.argv.slice(2);
if (path) {
  const [before, after] = [await deployed(), JSON.parse(readFileSync(path))];
  checkKept(kept(before), kept(after));
  // This is only advice, so a deployment does not need the permission to ask.
  const limits = await new LambdaClient(settings).send(new GetAccountSettingsCommand({})).catch(() => undefined);
  if (limits?.AccountLimit) checkConcurrency(limits.AccountLimit, before, after);
  const [accessLogs, on] = after.Conditions.AccessLogs?.['Fn::Equals'] ?? ['off', 'on'];
  if (accessLogs === on) {
    const { cloudwatchRoleArn } = await ask(
      new APIGatewayClient(settings),
      new GetAccountCommand({}),
      'AWS does not let you read the settings of API Gateway',
    );
    if (!cloudwatchRoleArn) {
      stop(
        `API Gateway may not write logs in account ${Account}. Give it a role once, as infra/README.md says, or deploy with ` +
          'ARGS=--param=accessLogs=off.',
      );
    }
  }
}
