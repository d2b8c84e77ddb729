"""A small OpenAI-compatible server on loopback that misbehaves as it is told."""

import contextlib
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# What the server does with the nth request (from 1) and its body: a status, a body and headers; or None to hang up.
Answer = tuple[int, str | dict[str, Any], dict[str, str]] | None
Behave = Callable[[int, dict[str, Any]], Answer]


def says(text: str | None, top: dict[str, float] | None = None) -> Answer:
    """A chat completion; `top` gives the probabilities of the first tokens."""
    likely = [{"token": token, "logprob": math.log(p), "bytes": None} for token, p in (top or {}).items()]
    logprobs = {"content": [{**likely[0], "top_logprobs": likely}]} if top else None
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": logprobs}
    return 200, {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}, {}


def fails(status: int, message: str = "no", **headers: str) -> Answer:
    """An error in the API's own form; `retry_after="1"` becomes a Retry-After header."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, {"error": {"message": message}}, named


class ChatServer:
    """Where it listens, and what it was asked: (seconds, headers, body) of every request."""

    def __init__(self, behave: Behave) -> None:
        self.behave = behave
        self.asked: list[tuple[float, dict[str, str], dict[str, Any]]] = []
        self.lock = threading.Lock()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def prompts(self) -> list[str]:
        """What was asked, in the order of arrival."""
        return [body["messages"][0]["content"] for _, _, body in self.asked]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server.lock:
                    server.asked.append(
                        (time.monotonic(), {name.lower(): value for name, value in self.headers.items()}, body)
                    )
                    number = len(server.asked)
                answer = server.behave(number, body)
                if answer is None:
                    # A length that is never reached: the connection drops in the middle of the answer.
                    self.send_response(200)
                    self.send_header("Content-Length", "1000")
                    self.end_headers()
                    self.wfile.write(b'{"choices"')
                    self.close_connection = True
                    return
                status, content, headers = answer
                raw = (content if isinstance(content, str) else json.dumps(content)).encode()
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    self.send_response(status)
                    for name, value in {"Content-Type": "application/json", **headers}.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(raw)))
                    self.end_headers()
                    self.wfile.write(raw)

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        return Handler


@contextlib.contextmanager
def serving(behave: Behave) -> Iterator[ChatServer]:
    """A server that lives inside the block."""
    server = ChatServer(behave)
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
        thread.join()
