"""A web server on loopback for the tests of remote shards: it serves a folder, counts, and fails when it is told to."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections import defaultdict
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Web:
    """Serves `root`. `faults[path]` are what the next GETs of this path do, one each:

    an HTTP status, "cut" (half of the bytes, then silence on a closed connection), "flip" (one bit is wrong), "slow"
    (half a second late), "stall" (no byte until the server is stopped), "short" (seven bytes of what was asked for, as
    if they were all), "long" (twice as much), "endless" (no length, and two million bytes), "shifted" (bytes from
    another place than was asked for), or "503 HEADER" (a status, and a Retry-After).

    A path below `moved/301/` is answered by this status and the address of what lies below it.
    """

    def __init__(self, root: Path, ranges: bool = True) -> None:
        self.root, self.ranges, self.port = root, ranges, 0
        self.faults: dict[str, list[str]] = defaultdict(list)
        self.gets: dict[str, list[int]] = defaultdict(list)  # first byte of each GET
        self.bytes_sent = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        web = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                web.answer(self, False)

            def do_GET(self) -> None:
                web.answer(self, True)

            def log_message(self, *_: object) -> None:
                pass

            def setup(self) -> None:
                super().setup()
                web.connections.append(self.connection)

        self.stopping = threading.Event()
        self.connections: list[socket.socket] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self.stopping.set()
        self.server.shutdown()
        self.server.server_close()
        for connection in self.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def answer(self, request: BaseHTTPRequestHandler, body: bool) -> None:
        path = request.path.lstrip("/")
        file = self.root / path
        fault = self.faults[path].pop(0) if body and self.faults[path] else ""
        span = re.match(r"bytes=(\d+)-(\d*)", request.headers.get("Range", "")) if self.ranges else None
        if body:
            self.gets[path].append(int(span[1]) if span else 0)
        moved = re.match(r"moved/(\d+)/(.*)", path)
        status, _, retry_after = fault.partition(" ")
        if moved or status.isdigit() or not file.is_file():
            request.send_response(int(moved[1] if moved else status or 404))
            if moved:
                request.send_header("Location", f"/{path if moved[2].startswith('round') else moved[2]}")
            if retry_after:
                request.send_header("Retry-After", retry_after)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        data = file.read_bytes()
        first, last = (int(span[1]), int(span[2] or len(data) - 1)) if span else (0, len(data) - 1)
        content = data[first : last + 1]
        if span and fault == "shifted":
            first, content = first + 7, data[first + 7 : last + 8]
        content = {"short": content[:7], "long": 2 * content, "endless": bytes(2_000_000)}.get(fault, content)
        request.send_response(206 if span else 200)
        request.send_header("Content-Length", str(len(content)))
        if span:
            request.send_header("Content-Range", f"bytes {first}-{first + len(content) - 1}/{len(data)}")
        request.end_headers()
        if not body:
            return
        if fault == "slow":
            time.sleep(0.5)
        if fault == "stall":
            self.stopping.wait()
        if fault == "flip":
            content = content[:700] + bytes([content[700] ^ 1]) + content[701:]
        if fault in ("cut", "stall"):
            content, request.close_connection = content[: len(content) // 2], True
        self.bytes_sent += len(content)
        request.wfile.write(content)


class HeldPort:
    """A free port of loopback, which from here on only who binds it by its number gets: no other free one is it."""

    def __init__(self) -> None:
        self._held = socket.socket()
        self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # so that a server may bind it as well
        self._held.bind(("127.0.0.1", 0))

    def __str__(self) -> str:
        return str(self._held.getsockname()[1])


class WandbServer:
    """As much of a W&B server as a run needs, on loopback; once `gone` is set it drops its connections, once `hung` is
    set it takes what comes and never answers."""

    def __init__(self) -> None:
        self.gone, self.hung, outer = threading.Event(), threading.Event(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if outer.hung.is_set():
                    threading.Event().wait()
                if outer.gone.is_set():
                    self.close_connection = True
                    return
                project = {"id": "p", "name": "demo", "entity": {"id": "e", "name": "me"}}
                bucket = {"id": "b", "name": "r", "displayName": "r", "project": project, "historyLineCount": 0}
                answer = {
                    "data": {"upsertBucket": {"bucket": bucket, "inserted": True}} if b"psertBucket" in body else {}
                }
                content = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
