"""A server of the tests' own on this machine, which misbehaves as it is told."""

from __future__ import annotations

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Site:
    """What the server has and how it misbehaves, by path; and what it was asked."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.moved: dict[str, str] = {}  # paths, and where they redirect to
        # the connection ends after so many bytes of the body; one entry a request
        self.cuts: dict[str, list[int]] = {}
        self.status: dict[str, list[int]] = {}  # answers before the first good one
        self.silent: dict[str, float] = {}  # seconds before the second half
        self.drip: set[str] = set()
        self.ranges = self.etag = self.length = True
        self.chunked = self.heedless = False  # heedless: of If-Range
        self.weak = ""
        self.asked: list[tuple[str, str | None]] = []
        self.authorized: list[tuple[str, str]] = []  # paths that came with credentials
        self.together = self.most_together = 0
        self.lock = threading.Lock()
        self.over = threading.Event()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/{path}"

    def requests(self, path: str) -> list[str | None]:
        return [wanted for asked, wanted in self.asked if asked == path]

    def __enter__(self) -> Site:
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with site.lock:
                    site.together += 1
                    site.most_together = max(site.most_together, site.together)
                try:
                    site.answer(self)
                finally:
                    with site.lock:
                        site.together -= 1

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.close()

    def answer(self, to: BaseHTTPRequestHandler) -> None:
        path, asked_range = to.path[1:], to.headers["Range"]
        self.asked.append((path, asked_range))
        if credentials := to.headers["Authorization"]:
            self.authorized.append((path, credentials))
        if path.startswith("loop"):
            to.send_response(302)
            to.send_header("Location", f"/loop{1 - int(path[4:] or 0)}")
            to.end_headers()
            return
        if path in self.moved:
            to.send_response(302)
            to.send_header("Location", self.moved[path])
            to.end_headers()
            return
        if path.startswith("to/"):
            to.send_response(301)
            to.send_header("Location", path[3:])
            to.end_headers()
            return
        if self.status.get(path):
            to.send_error(self.status[path].pop(0))
            return
        if path not in self.files:
            to.send_error(404)
            return
        body, tag = self.files[path], f'"{sha256(self.files[path])[:16]}"'
        start = 0
        if asked_range and self.ranges and (self.heedless or to.headers["If-Range"] == tag):
            start = int(asked_range.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                to.send_error(416)
                return
        to.send_response(206 if start else 200)
        if start:
            to.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if self.etag:
            to.send_header("ETag", self.weak + tag)
        if self.chunked:
            to.protocol_version = "HTTP/1.1"
            to.send_header("Transfer-Encoding", "chunked")
        elif self.length:
            to.send_header("Content-Length", str(len(body) - start))
        to.end_headers()
        body = body[start:]
        cut = self.cuts[path].pop(0) if self.cuts.get(path) else None
        try:
            if path in self.drip:
                while not self.over.wait(0.05):
                    to.wfile.write(b"x")
            elif self.chunked:
                half = len(body) // 2
                for piece in (body[:half], body[half:]) if cut is None else (body[:cut],):
                    to.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
                to.wfile.write(b"0\r\n\r\n" if cut is None else b"")
            elif path in self.silent:
                to.wfile.write(body[: len(body) // 2])
                to.wfile.flush()
                self.over.wait(self.silent[path])
                to.wfile.write(body[len(body) // 2 :])
            else:
                to.wfile.write(body[:cut])
        except OSError:
            pass
