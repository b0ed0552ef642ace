"""A small OpenAI-compatible server on loopback that can be told to misbehave, for the endpoint modules."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Behaviour:
    """What the server says and does."""

    text: str = "bright because people everywhere keep learning how useful such tools can be in daily work"
    streamed_text: str | None = None
    words_per_chunk: int = 1
    chunk_seconds: float = 0.0
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    version: dict[str, Any] = field(default_factory=lambda: {"version": "0.21.0"})
    models: list[str] = field(default_factory=lambda: ["qwen3.5"])
    usage: bool = True
    cut_stream: bool = False
    error_event: bool = False
    fail_every: int = 0
    hang: bool = False
    # What a repeated request gets, the name of the model in answers, requests of more words than `longest`.
    again_text: str | None = None
    answers_as: str | None = None
    longest: int | None = None
    ignore_stop: bool = False
    ignore_max_tokens: bool = False
    template: bool = True
    tokens_per_word: int = 1
    chats: bool = True


class Server:
    """Runs in a thread; `requests` keeps the bodies of all posts in order of arrival."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.requests: list[dict[str, Any]] = []
        self.released = threading.Event()
        handler = type("BoundHandler", (Handler,), {"owner": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()


class Handler(BaseHTTPRequestHandler):
    """Health, models, version, completions and chat completions."""

    owner: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Keep the test output clean."""

    def _send(self, status: int, body: Any) -> None:
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in self.owner.behaviour.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        behaviour = self.owner.behaviour
        if behaviour.hang:
            self.owner.released.wait(30)
        if behaviour.status != 200:
            self._send(behaviour.status, "no")
        elif self.path == "/v1/models":
            self._send(200, {"data": [{"id": name} for name in behaviour.models]})
        elif self.path == "/version":
            self._send(200, behaviour.version)
        else:
            self._send(200, "")

    def do_POST(self) -> None:
        behaviour = self.owner.behaviour
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.owner.requests.append(body)
        number = len(self.owner.requests)
        if behaviour.status != 200 or (behaviour.fail_every and number % behaviour.fail_every == 0):
            self._send(behaviour.status if behaviour.status != 200 else 503, "engine dead")
            return
        chat = self.path.endswith("/chat/completions")
        if chat and not behaviour.chats:
            self._send(400, "this model has no chat template")
            return
        text = behaviour.text
        if body.get("stream") and behaviour.streamed_text is not None:
            text = behaviour.streamed_text
        elif behaviour.again_text is not None and body in self.owner.requests[: number - 1]:
            text = behaviour.again_text
        for stop in [] if behaviour.ignore_stop else body.get("stop") or []:
            text = text.partition(stop)[0]
        words = text.split(" ")
        finish = "stop"
        if not behaviour.ignore_max_tokens and len(words) > body.get("max_tokens", 16):
            words, finish = words[: body.get("max_tokens", 16)], "length"
        asked = " ".join(one["content"] for one in body["messages"]) if chat else str(body.get("prompt", ""))
        prompt_tokens = len(asked.split()) * behaviour.tokens_per_word + (5 if chat and behaviour.template else 0)
        if behaviour.longest is not None and prompt_tokens > behaviour.longest:
            self._send(500, "out of blocks")
            return
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": len(words) if text else 0}
        if body.get("stream"):
            self._stream(words, usage, chat)
            return
        choice = {"message": {"content": " ".join(words)}} if chat else {"text": " ".join(words)}
        choice["finish_reason"] = finish
        answer = {"model": behaviour.answers_as or body["model"], "choices": [choice]}
        self._send(200, {**answer, **({"usage": usage} if behaviour.usage else {})})

    def _event(self, data: str) -> None:
        payload = f"data: {data}\n\n".encode()
        self.wfile.write(f"{len(payload):x}\r\n".encode() + payload + b"\r\n")
        self.wfile.flush()

    def _stream(self, words: list[str], usage: dict[str, int], chat: bool) -> None:
        behaviour = self.owner.behaviour
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        pieces = [word if index == 0 else f" {word}" for index, word in enumerate(words)]
        step = behaviour.words_per_chunk
        for start in range(0, len(pieces), step):
            piece = "".join(pieces[start : start + step])
            self._event(json.dumps({"choices": [{"delta": {"content": piece}} if chat else {"text": piece}]}))
            time.sleep(behaviour.chunk_seconds)
        if behaviour.error_event:
            self._event(json.dumps({"error": {"message": "kv transfer failed"}}))
        if behaviour.usage:
            self._event(json.dumps({"choices": [], "usage": usage}))
        if not behaviour.cut_stream:
            self._event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")
