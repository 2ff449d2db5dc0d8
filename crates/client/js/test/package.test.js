// What the package promises besides its behaviour: its size, its types, its README, its hooks.
import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';
import { buildSync } from 'esbuild';
import { soon, start } from './stack.js';

const folder = fileURLToPath(new URL('..', import.meta.url));
const LIMIT = 6 * 1024;

test('the module is small and imports nothing', () => {
  const options = { absWorkingDir: folder, entryPoints: ['index.js'], bundle: true, format: 'esm', minify: true };
  const { outputFiles, metafile } = buildSync({ ...options, write: false, metafile: true });
  const size = gzipSync(outputFiles[0].contents, { level: 9 }).length;
  console.log(`switchboard-client: ${size} bytes, minified and gzipped`);
  assert.ok(size <= LIMIT, `${size} bytes are more than ${LIMIT}`);
  assert.deepEqual(Object.keys(metafile.inputs), ['index.js']);
});

test('the types are strict, and the declarations stand alone', () => {
  const options = [
    '--strict',
    '--exactOptionalPropertyTypes',
    '--noEmit',
    '--module',
    'nodenext',
    '--lib',
    'es2022,dom',
  ];
  try {
    execFileSync('node_modules/.bin/tsc', [...options, '--types', '', 'test/types.ts'], { cwd: folder });
  } catch (error) {
    assert.fail(String(error.stdout));
  }
});

test('the example of the README does what it says', async (t) => {
  const stack = await start(t);
  const readme = readFileSync(new URL('../README.md', import.meta.url), 'utf8');
  const [, code] = readme.match(/```js\n([^]*?)```/);
  const [, expected] = readme.match(/```console\n\$ node chat\.mjs\n([^]*?)```/);
  // Node has a WebSocket of its own from version 22 on. Version 20 has it behind a flag.
  const flags = globalThis.WebSocket ? [] : ['--experimental-websocket', '--no-warnings'];
  const child = spawn(process.execPath, [...flags, '--input-type=module', '-'], {
    cwd: folder,
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  t.after(() => child.kill());
  child.stdin.end(code.replaceAll('localhost:3001', `localhost:${stack.port}`));
  let output = '';
  const ended = new Promise((resolve) => child.stdout.on('data', (data) => (output += data)).on('end', resolve));
  await soon(ended, 'the end of the example');
  assert.equal(output, expected);
});
