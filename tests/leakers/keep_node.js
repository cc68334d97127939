// Keeps buffers of 256 KiB (keep_node.js buffers) or objects (keep_node.js objects). Prints "ready", then adds some
// every 5 ms until it is killed.
const kept = [];
console.log("ready");
setInterval(() => {
  if (process.argv[2] === "buffers") kept.push(Buffer.alloc(262144, 1));
  else for (let i = 0; i < 2000; i++) kept.push({ number: kept.length, text: "text " + kept.length });
}, 5);
