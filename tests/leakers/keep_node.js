// Keeps buffers of 256 KiB (keep_node.js buffers) or objects (keep_node.js objects). Says "ready", then takes some
// every 5 ms for as long as it lives.
const kept = [];
console.log("ready");
setInterval(() => {
  if (process.argv[2] === "buffers") kept.push(Buffer.alloc(262144, 1));
  else for (let i = 0; i < 2000; i++) kept.push({ number: kept.length, text: "text " + kept.length });
}, 5);
