"""What the suite has to know of a deployment, and how it talks to it: plain HTTP, no client library in between."""

from __future__ import annotations

import http.client
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]
TIMEOUT_S = 120.0
_SAMPLE = re.compile(r"(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass
class Reply:
    """An HTTP answer."""

    status: int
    headers: http.client.HTTPMessage
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


@dataclass
class Metric:
    """One metric family of a `/metrics` page: its type and its samples as (name, labels, value)."""

    kind: str
    samples: list[tuple[str, dict[str, str], float]] = field(default_factory=list)

    @property
    def labels(self) -> set[str]:
        """Label names, without those that the exposition format itself adds."""
        return {label for _, labels, _ in self.samples for label in labels} - {"le", "quantile"}


def parse_metrics(page: str) -> dict[str, Metric]:
    """The families of a page by the name after `# TYPE`, without those that a client library adds (`_created`)."""
    found: dict[str, Metric] = {}
    for line in page.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ", 3)
            found[name] = Metric(kind)
        elif line and not line.startswith("#"):
            match = _SAMPLE.fullmatch(line)
            assert match, f"not in the text exposition format: {line!r}"
            labels = dict(_LABEL.findall(match["labels"] or ""))
            family = max((name for name in found if match["name"].startswith(name)), key=len, default=None)
            assert family is not None, f"a sample without a type: {line!r}"
            found[family].samples.append((match["name"], labels, float(match["value"])))
    return {name: metric for name, metric in found.items() if not name.endswith("_created")}


@dataclass
class Deployment:
    """A served model as the suite sees it.

    `url` is where clients go; `engines` are the API servers by role (`serve`, `prefill`, `decode`), which answer
    `/metrics`; `ranks` are the data parallel ranks of all. `differences` names the engine for the table of known
    differences: `simulator`, `vllm`, or an empty text for one that has none. `logs` gives the log of each
    engine process.
    """

    url: str
    model: str
    differences: str = ""
    engines: Mapping[str, str] = field(default_factory=dict)
    ranks: int = 1
    max_model_len: int = 2048
    api_key: str | None = None
    logs: Callable[[], Mapping[str, str]] | None = None

    @property
    def routed(self) -> bool:
        """Whether a router stands before the engines."""
        return "prefill" in self.engines

    @property
    def answering(self) -> str:
        """The engine whose counters tell of answers."""
        return self.engines.get("decode") or self.engines.get("serve") or self.url

    def open(self, path: str, body: Any = None, *, url: str | None = None, headers: Mapping[str, str] = {}) -> Reply:
        """One request; a body makes it a POST, as JSON unless it is bytes. Error statuses are answers too."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        sent = {"Content-Type": "application/json"} if data is not None else {}
        if self.api_key:
            sent["Authorization"] = f"Bearer {self.api_key}"
        request = urllib.request.Request((url or self.url) + path, data, sent | dict(headers))
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=TIMEOUT_S) as answer:
                return Reply(answer.status, answer.headers, answer.read().decode())
        except urllib.error.HTTPError as error:
            return Reply(error.code, error.headers, error.read().decode())

    def complete(self, prompt: Any = "The future of AI is", **more: Any) -> Json:
        """A completion that has to succeed."""
        reply = self.open("/v1/completions", {"model": self.model, "prompt": prompt, "max_tokens": 8, **more})
        assert reply.status == 200, f"{reply.status}: {reply.text}"
        return reply.json

    def chat(self, content: str = "Name a colour.", **more: Any) -> Json:
        """A chat answer that has to succeed."""
        body = {"model": self.model, "messages": [{"role": "user", "content": content}], "max_tokens": 8, **more}
        reply = self.open("/v1/chat/completions", body)
        assert reply.status == 200, f"{reply.status}: {reply.text}"
        return reply.json

    def stream(self, path: str, body: Json) -> list[Json]:
        """The chunks of a streamed answer. It has to end with `[DONE]`."""
        reply = self.open(path, {"model": self.model, **body, "stream": True})
        assert reply.status == 200, f"{reply.status}: {reply.text}"
        assert reply.headers["Content-Type"].startswith("text/event-stream"), reply.headers["Content-Type"]
        events = [event for event in reply.text.split("\n\n") if event.strip()]
        assert all(event.startswith("data: ") for event in events), reply.text
        assert events[-1] == "data: [DONE]", f"the stream ends with {events[-1]!r}"
        return [json.loads(event.removeprefix("data: ")) for event in events[:-1]]

    def metrics(self, url: str | None = None) -> dict[str, Metric]:
        """The metrics of one engine, by default of the one that answers."""
        reply = self.open("/metrics", url=url or self.answering)
        assert reply.status == 200, f"{reply.status}: {reply.text}"
        return parse_metrics(reply.text)

    def count(self, name: str, url: str | None = None, **labels: str) -> float:
        """Sum of a counter's samples that carry these labels."""
        metric = self.metrics(url).get(f"vllm:{name}") or self.metrics(url).get(f"vllm:{name}_total")
        assert metric, f"no counter {name}"
        return sum(
            value
            for sample, own, value in metric.samples
            if not sample.endswith("_created") and all(own.get(key) == wanted for key, wanted in labels.items())
        )

    def grows(self, name: str, before: float, least: float, url: str | None = None, **labels: str) -> float:
        """By how much a counter has grown, once it has grown by `least`: engines publish their figures in rounds."""
        deadline = time.monotonic() + 60
        while (grown := self.count(name, url, **labels) - before) < least and time.monotonic() < deadline:
            time.sleep(0.2)
        assert grown >= least, f"{name} {labels} grew by {grown}, not by {least}"
        return grown
