// Refuses a deployment whose settings are unsafe or cannot work, before anything is built: node infra/settings.mjs
// It reads serverless.yml as the framework resolves it for $STAGE, $REGION and $ARGS. It never prints a key.
import { spawnSync } from 'node:child_process';

// Lambda's limit for all variables of a function. It measures them as one JSON text: names, quotes and escapes count.
const MOST_BYTES = 4096;
const KEPT = 'kty, n, e, kid, alg, use, crv, x and y';
// Only private keys have these members (RFC 7518, section 6; RFC 8037, section 2).
const PRIVATE = ['d', 'p', 'q', 'dp', 'dq', 'qi', 'oth'];

const framework = spawnSync('infra/serverless.sh', ['print', '--format', 'json'], {
  encoding: 'utf8',
  maxBuffer: Infinity,
  stdio: ['ignore', 'pipe', 'inherit'],
});
if (framework.status !== 0) process.exit(framework.status ?? 1);
const { custom, functions, provider } = JSON.parse(framework.stdout);

let isRefused = false;

function say(text) {
  console.error(`switchboard: ${text}`);
}

function refuse(text) {
  say(text);
  isRefused = true;
}

// Lambda gets every value as text, unless it is an expression that AWS evaluates.
function variablesOf(definition) {
  const all = Object.entries({ ...provider.environment, ...definition.environment });
  const given = all.filter(([, value]) => value !== null);
  return Object.fromEntries(given.map(([name, value]) => [name, typeof value === 'object' ? value : String(value)]));
}

// The variables that say where keys are, and their settings. Only one may be set.
const KEYS = { TOKEN_KEYS: 'tokenKeys', TOKEN_KEYS_PARAMETER: 'tokenKeysParameter', TOKEN_KEYS_URL: 'tokenKeysUrl' };

function checkIdentity({ IDENTITY_MODE: mode = 'verified', ...variables }, hasAuthorizer) {
  const { stage } = provider;
  const given = Object.keys(KEYS).filter((name) => (variables[name] ?? '') !== '');
  const hasKeys = given.length > 0;
  if (given.length > 1) {
    refuse(`${given.map((name) => `${KEYS[name]} (the variable ${name})`).join(' and ')} are set. Only one place may have the keys.`);
  }
  if (!['verified', 'open', 'open-with-tokens'].includes(mode)) {
    refuse(`identityMode is '${mode}'. Set it to verified, open or open-with-tokens.`);
  } else if (mode === 'verified' && !hasKeys && !hasAuthorizer && custom.allowNoIdentity !== 'yes') {
    refuse(
      `identityMode is 'verified', but there are no keys and $connect has no authorizer. The stage '${stage}' would ` +
        'refuse every handshake. Set the variable TOKEN_KEYS, TOKEN_KEYS_PARAMETER or TOKEN_KEYS_URL, or allow this with ' +
        '--param=allowNoIdentity=yes.',
    );
  } else if (mode !== 'verified' && stage !== 'dev' && custom.allowOpen !== 'yes') {
    refuse(
      `identityMode is '${mode}'. Clients of the stage '${stage}' could name themselves, and nobody would check it. ` +
        'Set it to verified, or allow this with --param=allowOpen=yes.',
    );
  }
  if (mode === 'open' && hasKeys) {
    refuse(
      `identityMode is 'open', but ${KEYS[given[0]]} (the variable ${given[0]}) is set. A client without a token could still ` +
        'name itself. Set identityMode to verified, or to open-with-tokens if you want that.',
    );
  }
}

function checkKeys({ TOKEN_KEYS: keys = '' }) {
  // AWS alone knows the value of an expression.
  if (typeof keys !== 'string' || keys === '' || keys.startsWith('{{resolve:')) return;
  let set;
  try {
    set = JSON.parse(keys)?.keys;
  } catch {
    // The error quotes the text, which may be a secret.
  }
  if (!Array.isArray(set) || set.some((key) => typeof key?.kty !== 'string')) {
    refuse('tokenKeys (the variable TOKEN_KEYS) is not a JWK Set. It must be JSON of the form {"keys":[{"kty":…}]}.');
    return;
  }
  for (const [index, key] of set.entries()) {
    const place = `at keys[${index}] of tokenKeys (the variable TOKEN_KEYS)`;
    if (PRIVATE.some((member) => member in key)) {
      refuse(`There is a private key ${place}. Give the public key: keep only ${KEPT}.`);
    } else if (key.kty === 'oct') {
      refuse(
        `There is a secret ${place}. Everybody who can read the function's variables, its CloudFormation template or the ` +
          'deployment bucket could make tokens with it. Put the set into an SSM parameter of the type SecureString, and its ' +
          'name into TOKEN_KEYS_PARAMETER.',
      );
    }
  }
}

// `connect` checks both again, because an expression may hide them here.
function checkSources({ TOKEN_KEYS_PARAMETER: parameter = '', TOKEN_KEYS_URL: url = '' }) {
  // The name is also the end of an ARN in the function's role, so it may have no wildcard.
  if (parameter !== '' && !/^(\/[A-Za-z0-9_.-]+)+$/.test(parameter)) {
    refuse(
      'tokenKeysParameter (the variable TOKEN_KEYS_PARAMETER) is not the name of a parameter with its path, such as ' +
        '/switchboard/prod/keys.',
    );
  }
  if (typeof url === 'string' && url !== '' && !/^https:\/\/[^/@?#]+([/?]|$)/.test(url)) {
    refuse('tokenKeysUrl (the variable TOKEN_KEYS_URL) is not an address that begins with https:// and names no user.');
  }
}

function checkSize(name, variables) {
  // An expression counts with its own text.
  const bytes = (value) => Buffer.byteLength(JSON.stringify(value));
  const total = bytes(variables);
  if (total <= MOST_BYTES) return;
  const [largest, value] = Object.entries(variables).sort(([, one], [, other]) => bytes(other) - bytes(one))[0];
  const expressions = Object.keys(variables).filter((variable) => typeof variables[variable] === 'object');
  const count = (number) => number.toLocaleString('en-US');
  refuse(
    `The variables of the function ${name} have ${count(total)} bytes, and Lambda takes ${count(MOST_BYTES)}. ` +
      `The largest is ${largest} with ${count(bytes(value))} bytes. ` +
      (largest === 'TOKEN_KEYS' ? `Keep only ${KEPT} of each key; remove x5c, x5t and x5u.` : 'Make it shorter.') +
      (expressions.length > 0 ? ` (AWS evaluates ${expressions.join(', ')}: their sizes are estimated.)` : ''),
  );
}

for (const [name, definition] of Object.entries(functions)) {
  const variables = variablesOf(definition);
  const sockets = (definition.events ?? []).map((event) => event.websocket);
  const connect = sockets.find((socket) => socket === '$connect' || socket?.route === '$connect');
  if (connect) {
    checkIdentity(variables, Boolean(connect.authorizer));
    checkKeys(variables);
    checkSources(variables);
  }
  checkSize(name, variables);
}
process.exitCode = isRefused ? 1 : 0;
