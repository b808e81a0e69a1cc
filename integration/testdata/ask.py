"""Asks a sandbox's own socket, from inside: METHOD PATH [BODY [HEADER...]].

Prints the status and the body of the answer. Of a path that begins with "raw:"
the rest is sent as it is, with \\n for line ends.
"""
import socket
import sys

method, path = sys.argv[1:3]
body = sys.argv[3] if len(sys.argv) > 3 else ""
s = socket.socket(socket.AF_UNIX)
s.settimeout(60)
s.connect("/run/creel/creel.sock")
if path.startswith("raw:"):
    text = path[4:].replace("\\n", "\r\n")
else:
    head = [method + " " + path + " HTTP/1.1", "Host: creel", "Connection: close"] + sys.argv[4:]
    if body:
        head += ["Content-Type: application/json", "Content-Length: %d" % len(body.encode())]
    text = "\r\n".join(head) + "\r\n\r\n" + body
s.sendall(text.encode())
got = b""
while True:
    try:
        more = s.recv(65536)
    except ConnectionResetError:
        break
    if not more:
        break
    if not got and "Connection: close" not in text:
        # Not before there is an answer: net/http may take the end for a hang-up.
        s.shutdown(socket.SHUT_WR)
    got += more
for answer in got.decode(errors="replace").split("HTTP/1.1 ")[1:]:
    head, _, rest = answer.partition("\r\n\r\n")
    print(head.split()[0], rest.strip())
