// Known functions for the map of a just-in-time compiler. Prints "ready"; for each line keeps COUNT buffers of BYTES, each
// with a mapping of its own, through keepOne, called by keepMany; then prints "done".
const COUNT = 5, BYTES = 4 * 1024 * 1024 + 4096;
const kept = [];

function keepOne(bytes) {
  const buffer = Buffer.allocUnsafeSlow(bytes);
  kept.push(buffer);
  return buffer.length;
}

function keepMany(count) {
  let total = 0;
  for (let i = 0; i < count; i++) total += keepOne(BYTES);
  return total;
}

for (let i = 0; i < 20000; i++) keepOne(0); // makes it hot: compiled
kept.length = 0;
process.stdin.on("data", () => {
  keepMany(COUNT);
  console.log("done");
});
console.log("ready");
