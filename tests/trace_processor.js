// Perfetto's trace processor, in its WebAssembly build for the web, as a filter: requests of its RPC come on standard
// input, the replies go to standard output. Argument: the folder with engine_bundle.node.js and trace_processor.wasm.
"use strict";
const fs = require("node:fs");
const path = require("node:path");
const vm = require("node:vm");

const folder = process.argv[2];

// What the engine expects of a web worker: a scope, a place, and a synchronous way to read its module.
const worker = {
  self: globalThis,
  WorkerGlobalScope: class {},
  location: { href: "file:///" },
  XMLHttpRequest: class {
    open(_method, url) {
      this.file = path.join(folder, path.basename(url));
    }
    send() {
      const data = fs.readFileSync(this.file);
      this.response = data.buffer.slice(data.byteOffset, data.byteOffset + data.length);
      this.status = 200;
    }
  },
};
for (const [name, value] of Object.entries(worker))
  Object.defineProperty(globalThis, name, { value, configurable: true, writable: true });
console.log = console.warn = console.error; // standard output is for replies

// Only the 32-bit module comes with it, also where 64-bit memory is supported.
const engine = fs.readFileSync(path.join(folder, "engine_bundle.node.js"), "utf8");
vm.runInThisContext(engine.replace("hasMemory64Support();", "false;"));

const port = { postMessage: (reply) => fs.writeSync(1, reply) };
self.onmessage({ data: port });
setImmediate(() => process.stdin.on("data", (data) => port.onmessage({ data: new Uint8Array(data) })));
