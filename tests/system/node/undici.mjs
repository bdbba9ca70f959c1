// undici's own WebSocket over HTTP/2: node undici.mjs FOLDER URL CA COUNT BYTES
//
// So many at once on one connection: each sends so many bytes, reads them again, and closes. Prints what was seen.

import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [folder, url, ca, count, bytes] = process.argv.slice(2);
const { Agent, WebSocket } = createRequire(import.meta.url)(folder);
const dispatcher = new Agent({ allowH2: true, connections: 1, pipelining: Number(count), connect: { ca: readFileSync(ca) } });

function tunnel() {
    const sent = randomBytes(Number(bytes));
    return new Promise((resolve) => {
        const socket = new WebSocket(url, { dispatcher, protocols: ["binary"] });
        const seen = { protocol: null, same: null, error: null, code: null, clean: null };
        let [got, length] = [[], 0];
        socket.binaryType = "arraybuffer";
        socket.onopen = () => {
            seen.protocol = socket.protocol;
            socket.send(sent);
        };
        socket.onmessage = ({ data }) => {
            got.push(Buffer.from(data));
            length += data.byteLength;
            if (length < sent.length) return;
            seen.same = Buffer.concat(got).equals(sent);
            socket.close(1000);
        };
        socket.onerror = ({ error, message }) => { seen.error = String(error ?? message); };
        socket.onclose = ({ code, wasClean }) => resolve({ ...seen, code, clean: wasClean });
    });
}

const tunnels = await Promise.all(Array.from({ length: Number(count) }, tunnel));
console.log(JSON.stringify(tunnels));
await dispatcher.destroy();
