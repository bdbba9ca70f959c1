// Tunnels as streams of one HTTP/2 connection, by Node's own http2: node tunnels.mjs ORIGIN/PATH CA COUNT BYTES
//
// Each sends so many random bytes in two fragments, reads until as many have come back, and says CLOSE 1000.
// Prints what was seen as JSON; `reset` is the code of a RST_STREAM.

import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import http2 from "node:http2";

const [where, ca, count, bytes] = process.argv.slice(2);
const url = new URL(where);
const [BINARY, CONT, CLOSE] = [2, 0, 8];

function frame(opcode, payload, isLast = true) {
    const head = [opcode | (isLast ? 0x80 : 0)];
    if (payload.length < 126) head.push(0x80 | payload.length);
    else if (payload.length < 65536) head.push(0x80 | 126, payload.length >> 8, payload.length & 255);
    else {
        const length = Buffer.alloc(8);
        length.writeBigUInt64BE(BigInt(payload.length));
        head.push(0x80 | 127, ...length);
    }
    const key = randomBytes(4);
    return Buffer.concat([Buffer.from(head), key, payload.map((byte, at) => byte ^ key[at & 3])]);
}

// [opcode, payload, bytes of the frame], or null while it is not whole.
function parsed(wire) {
    if (wire.length < 2) return null;
    let [length, at] = [wire[1] & 127, 2];
    const more = { 126: 2, 127: 8 }[length] ?? 0;
    if (wire.length < at + more) return null;
    if (more) length = more === 2 ? wire.readUInt16BE(at) : Number(wire.readBigUInt64BE(at));
    at += more;
    return wire.length < at + length ? null : [wire[0] & 15, wire.subarray(at, at + length), at + length];
}

function tunnel(session) {
    const sent = randomBytes(Number(bytes));
    return new Promise((resolve) => {
        const stream = session.request({
            ":method": "CONNECT",
            ":protocol": "websocket",
            ":scheme": url.protocol.slice(0, -1),
            ":authority": url.host,
            ":path": url.pathname,
            "sec-websocket-version": "13",
            "sec-websocket-protocol": "binary",
        });
        const seen = { status: null, protocol: null, same: null, code: null, reset: 0 };
        let [wire, got, length] = [Buffer.alloc(0), [], 0];
        stream.on("error", () => {}); // `close` says all that there is to say
        stream.on("response", (headers) => {
            seen.status = headers[":status"];
            seen.protocol = headers["sec-websocket-protocol"];
            const half = Math.trunc(sent.length / 2);
            stream.write(frame(BINARY, sent.subarray(0, half), false));
            stream.write(frame(CONT, sent.subarray(half)));
        });
        stream.on("data", (piece) => {
            wire = Buffer.concat([wire, piece]);
            for (let found; (found = parsed(wire)); ) {
                const [opcode, payload, size] = found;
                wire = wire.subarray(size);
                if (opcode === CLOSE) seen.code = payload.readUInt16BE(0);
                if (opcode > 2) continue;
                got.push(Buffer.from(payload));
                length += payload.length;
                if (length < sent.length) continue;
                seen.same = Buffer.concat(got).equals(sent);
                stream.end(frame(CLOSE, Buffer.from([1000 >> 8, 1000 & 255])));
            }
        });
        stream.on("close", () => resolve({ ...seen, reset: stream.rstCode }));
    });
}

const session = http2.connect(url.origin, ca === "-" ? {} : { ca: readFileSync(ca) });
const settings = await new Promise((resolve, reject) => {
    session.on("error", reject);
    session.on("remoteSettings", resolve);
});
const tunnels = await Promise.all(Array.from({ length: Number(count) }, () => tunnel(session)));
console.log(JSON.stringify({ alpn: session.alpnProtocol, connect: settings.enableConnectProtocol, tunnels }));
session.close();
