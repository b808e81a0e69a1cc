"""Holds a sandbox's own socket, from inside: flood.py KIND SECONDS.

"open" begins 10,000 connections and a request on each that it never ends, and
sends descriptors with it; "fast" makes requests as fast as it can. Prints how
many got through.
"""
import array
import os
import socket
import sys
import time

kind, seconds = sys.argv[1], float(sys.argv[2])
end = time.monotonic() + seconds
held, through = [], 0
if kind == "open":
    fds = array.array("i", [os.open("/", os.O_RDONLY | os.O_DIRECTORY) for _ in range(16)])
    for _ in range(10000):
        s = socket.socket(socket.AF_UNIX)
        s.setblocking(False)
        try:
            s.connect("/run/creel/creel.sock")
            s.sendmsg([b"POST /v1/sandboxes HTTP/1.1\r\nHost: x\r\nContent-Le"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
            held.append(s)
        except OSError:
            s.close()
    through = len(held)
    print("held", through, flush=True)
    time.sleep(max(0, end - time.monotonic()))
else:
    s = socket.socket(socket.AF_UNIX)
    s.connect("/run/creel/creel.sock")
    f = s.makefile("rb")
    refused = 0
    while time.monotonic() < end:
        s.sendall(b"GET /v1/version HTTP/1.1\r\nHost: x\r\n\r\n")
        status = f.readline().split()[1]
        length = 0
        while True:
            line = f.readline().strip().lower()
            if line.startswith(b"content-length:"):
                length = int(line.split(b":")[1])
            if not line:
                break
        f.read(length)
        through += status == b"200"
        refused += status == b"429"
    print("through", through, "refused", refused, flush=True)
