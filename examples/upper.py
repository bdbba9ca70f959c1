#!/usr/bin/env python3
"""A program of one tunnel's own: greets who connects, then says each line again in capitals, until its input ends.

It knows nothing of sockets and is run once per tunnel, the tunnel being its standard input and output:

    python -m wstunnel --stdio examples/upper.py --path /upper

Who connects, and what for, stands in its environment as with CGI; what it writes to stderr is logged. It runs as well
in a terminal. `flush` matters: what is held back in a program nobody can relay.
"""

import os
import sys

sys.stdin.reconfigure(encoding="utf-8", errors="replace")  # clients may send anything, and programs have no locale
sys.stdout.reconfigure(encoding="utf-8")

print(f"hello {os.environ.get('REMOTE_ADDR', 'you there')}, what shall I say louder?", flush=True)
for line in sys.stdin:
    print(line.rstrip("\n").upper(), flush=True)
