// A Node.js counter server that checks itself. Serves lines over TCP: "N" is
// answered "N COUNT ok" (COUNT: requests of this connection), or
// "N COUNT bad: REASON". Usage: counter.js ADDRESS PORT
const crypto = require("crypto");
const net = require("net");

let wrong = "";
const blocks = [];
let step = 0;

// A rolling store of blocks with their digests, a timer that adds, and one
// that checks a random one.
setInterval(() => {
  const data = Buffer.alloc(16384, `block ${step++}`);
  blocks.push({ data, digest: crypto.createHash("sha256").update(data).digest("hex") });
  if (blocks.length > 500) blocks.shift();
}, 2);
setInterval(() => {
  const block = blocks[Math.floor(Math.random() * blocks.length)];
  if (block && crypto.createHash("sha256").update(block.data).digest("hex") !== block.digest) {
    wrong = "a stored block has changed";
  }
}, 5);

net
  .createServer((socket) => {
    let count = 0;
    let rest = "";
    socket.setNoDelay(true);
    socket.on("error", () => {});
    socket.on("data", (data) => {
      const lines = (rest + data).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        count += 1;
        socket.write(`${line} ${count} ${wrong ? "bad: " + wrong : "ok"}\n`);
      }
    });
  })
  .listen(Number(process.argv[3]), process.argv[2]);
