// 100,000 objects and a buffer of 32 MiB, then V8's own figure of its heap: "figure resident BYTES", then "ready".
const v8 = require("v8");
const kept = [];
for (let i = 0; i < 100000; i++) kept.push({ number: i, text: "text " + i });
const buffer = Buffer.alloc(32 << 20, 1);
const resident = v8.getHeapSpaceStatistics().reduce((sum, space) => sum + space.physical_space_size, 0);
console.log(`figure resident ${resident}`);
console.log("ready");
setInterval(() => kept.length + buffer.length, 1 << 30);
