// Packages services with the framework, all in one process, because its start takes most of the time of a run.
//
// `node framework.mjs FRAMEWORK FOLDER FILE…` prints one line of JSON for each file: its name, and the error if it is refused.
import fs from 'node:fs';
import http from 'node:http';
import { createRequire } from 'node:module';
import os from 'node:os';
import path from 'node:path';

const require = createRequire(import.meta.url);
const [framework, folder, ...files] = process.argv.slice(2);
const copy = fs.mkdtempSync(path.join(os.tmpdir(), 'framework-'));
process.on('exit', () => fs.rmSync(copy, { recursive: true }));

// Stands for each plugin. The first one of a service adds the keys and variables of all of them.
const PLUGIN = `module.exports = class {
  constructor({ configSchemaHandler }) {
    if (configSchemaHandler.schema.properties.appSync) return;
    this.configurationVariablesSources = { git: { resolve: () => ({ value: 'main' }) } };
    for (const key of ['appSync', 'stepFunctions']) configSchemaHandler.defineTopLevelProperty(key, {});
    const keys = ['alarms', 'iamRoleStatements', 'iamRoleStatementsInherit', 'iamRoleStatementsName', 'warmup'];
    configSchemaHandler.defineFunctionProperties('aws', { properties: Object.fromEntries(keys.map((key) => [key, {}])) });
  }
};`;

const texts = new Map(files.map((file) => [file, fs.readFileSync(path.join(folder, file), 'utf8')]));

// The account answers who it is, the value of each parameter, and the outputs of each stack.
const outputs = [...texts.values()].flatMap((text) => [...text.matchAll(/\$\{cf:[\w-]+\.(\w+)/g)].map(([, key]) => key));
const output = (key) => `<member><OutputKey>${key}</OutputKey><OutputValue>value</OutputValue></member>`;
const account = http.createServer((request, response) => {
  const isParameter = `${request.headers['x-amz-target']}`.startsWith('AmazonSSM');
  if (isParameter) return response.end(JSON.stringify({ Parameter: { Type: 'String', Value: 'value' } }));
  const identity = '<GetCallerIdentityResult><Account>123456789012</Account></GetCallerIdentityResult>';
  const stack = `<member><Outputs>${outputs.map(output).join('')}</Outputs></member>`;
  return response.end(`<R>${identity}<DescribeStacksResult><Stacks>${stack}</Stacks></DescribeStacksResult></R>`);
});

function write(file, text = '') {
  const at = path.join(copy, file);
  fs.mkdirSync(path.dirname(at), { recursive: true });
  fs.writeFileSync(at, text);
}

function replace(module, change) {
  const file = require.resolve(path.join(framework, module));
  require.cache[file] = { id: file, filename: file, loaded: true, exports: change(require(file)) };
}

// The modules that remember the command, the service and its variables.
const HAS_MEMORY = /\/serverless\/(scripts|lib\/(cli|configuration|utils))\//;

async function errorOf(file, environment) {
  process.env = { ...environment };
  process.chdir(path.join(copy, path.dirname(file)));
  const command = ['package', '--config', path.basename(file), '--package', path.join(copy, 'package')];
  process.argv = [process.argv[0], 'serverless', ...command];
  for (const name of Object.keys(require.cache)) if (HAS_MEMORY.test(name)) delete require.cache[name];
  let error = null;
  // The script ends with these two calls. All else of it is what the command does.
  await new Promise((resolve) => {
    replace('lib/cli/handle-error', () => (it) => {
      error = it;
    });
    replace('lib/utils/log-deprecation', (original) => Object.assign(original, { printSummary: resolve }));
    require(path.join(framework, 'scripts/serverless'));
  });
  process.removeAllListeners();
  return error && `${error.code ?? error.name}: ${error.message}`;
}

account.listen(0, '127.0.0.1', async () => {
  fs.cpSync(folder, copy, { recursive: true });
  for (const [file, text] of texts) {
    for (const [plugin] of text.matchAll(/\bserverless-[a-z-]+/g)) write(`node_modules/${plugin}/index.js`, PLUGIN);
    for (const [, artifact] of text.matchAll(/\bartifact: ([^\s,}]+)/g)) write(artifact);
    // A service without any file cannot be packaged.
    write(path.join(path.dirname(file), 'bootstrap'));
  }
  const url = `http://127.0.0.1:${account.address().port}`;
  const credentials = { AWS_ACCESS_KEY_ID: 'test', AWS_SECRET_ACCESS_KEY: 'test' };
  const environment = { ...process.env, ...credentials, AWS_ENDPOINT_URL: url, HOME: copy };
  for (const file of files) console.log(JSON.stringify([file, await errorOf(file, environment)]));
  process.removeAllListeners('exit');
  fs.rmSync(copy, { recursive: true });
  process.exit(0);
});
