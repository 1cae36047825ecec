"""A real fact service on this machine, for tests: it answers as it is told to, and keeps what it was asked."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[["Handler", dict[str, Any]], None]


class Handler(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((dict(self.headers), body))
        self.server.answer(self, body)

    def reply(self, content: Any, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


class Service(ThreadingHTTPServer):
    daemon_threads = True
    answer: Answer

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.answer = honest

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/check"

    def handle_error(self, *_: Any) -> None:
        """A client that has gone is what some tests are about."""


def verdicts_on(body: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"supported": int(pair["claim"].split()[1]) / 4, "span": [0, len(pair["evidence"])]} for pair in body["pairs"]
    ]


def honest(handler: Handler, body: dict[str, Any]) -> None:
    handler.reply({"version": "7", "verdicts": verdicts_on(body)})


@contextlib.contextmanager
def serving() -> Iterator[Service]:
    server = Service()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
