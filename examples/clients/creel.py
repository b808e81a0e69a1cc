#!/usr/bin/env python3
"""A client of creeld with nothing but the standard library."""
import http.client, json, os, socket, struct, sys, threading

SOCKET = os.environ.get("CREEL_SOCKET", "/run/creel/creel.sock")
STDIN, STDOUT, STDERR, EXIT, ERROR = 0, 1, 2, 5, 6  # the types of frames


class Connection(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(SOCKET)


def call(method, path, body=None):
    """One request with JSON; what the daemon refuses is a RuntimeError."""
    c = Connection("creel")
    try:
        data = None if body is None else json.dumps(body)
        c.request(method, "/v1" + path, data, {"Content-Type": "application/json"} if data else {})
        r = c.getresponse()
        text = r.read()
    finally:
        c.close()
    if r.status >= 300:
        raise RuntimeError(text.decode())
    return json.loads(text) if text else None


def stream(ref, command, stdin=b"", on_stdout=lambda b: None, on_stderr=lambda b: None):
    """Runs a command with its streams as frames; returns how it ended."""
    body = json.dumps({"command": command, "stdin": True}).encode()
    head = (f"POST /v1/sandboxes/{ref}/exec HTTP/1.1\r\nHost: creel\r\nConnection: Upgrade\r\nUpgrade: creel-stream\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n").encode()
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(SOCKET)
        s.sendall(head + body)
        r = s.makefile("rb")
        upgraded = r.readline().split()[1] == b"101"
        while r.readline().strip():
            pass  # headers
        if not upgraded:
            raise RuntimeError(r.read().decode())

        def send():
            try:
                for i in range(0, len(stdin), 65536):
                    part = stdin[i:i + 65536]
                    s.sendall(struct.pack(">B3xI", STDIN, len(part)) + part)
                s.sendall(struct.pack(">B3xI", STDIN, 0))  # the end of input
            except OSError:
                pass  # the command has ended without reading it all

        threading.Thread(target=send, daemon=True).start()
        while True:
            kind, size = struct.unpack(">B3xI", r.read(8))
            payload = r.read(size)
            if kind == STDOUT:
                on_stdout(payload)
            elif kind == STDERR:
                on_stderr(payload)
            elif kind == EXIT:
                return json.loads(payload)
            elif kind == ERROR:
                raise RuntimeError(payload.decode())


if __name__ == "__main__":
    name = sys.argv[1]
    box = call("PUT", "/sandboxes/" + name, {"limits": {"memory": "128M", "ttl": "10m"}})["sandbox"]
    print("state:", box["state"])
    once = call("POST", f"/sandboxes/{name}/exec", {"command": ["tr", "a-z", "A-Z"], "input": "hello", "timeout": "30s"})
    print("one shot:", once["exit_code"], once["stdout"])
    out, err = bytearray(), bytearray()
    end = stream(name, ["sh", "-c", "wc -c; echo oops >&2; exit 7"], b"x" * 200_000, out.extend, err.extend)
    print("stream:", end["exit_code"], out.decode().strip(), err.decode().strip())
    call("DELETE", f"/sandboxes/{name}?force=true")
