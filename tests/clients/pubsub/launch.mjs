#!/usr/bin/env node
// Runs the handler of a function in JavaScript: `_HANDLER` is `src/connect.handler`, for example. The folder `bin` has a
// link to this file for each function, with the function's key as its name.
import { serve } from "../runtime.mjs";

const [, file, name] = process.env._HANDLER.match(/^(.*)\.([^.]*)$/);
const functions = await import(new URL(`${file}.mjs`, import.meta.url));
await serve(functions[name]);
