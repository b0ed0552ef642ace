"""Request proxies of prefill/decode deployments, with the command lines of the engine's example scripts.

Plain (connectors that pull): prefill is asked first for one token and answers with where its KV is; decode gets the
original request with that. Layerwise: decode is asked first, with the address of this proxy's metaserver; it posts
there where it wants the KV, and the proxy then sends the prompt to a prefill instance with that.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import uuid
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web

Json = dict[str, Any]
ENDPOINTS = ("/v1/completions", "/v1/chat/completions")
MOST_DELAY = 1.0  # seconds between two tries


@dataclass
class Backend:
    """One engine's API and the load given to it: characters of prompt in flight."""

    host: str
    port: int
    load: int = 0

    @property
    def url(self) -> str:
        """Base of its endpoints."""
        return f"http://{self.host}:{self.port}"


def parse(argv: list[str] | None, layerwise: bool) -> argparse.Namespace:
    """Arguments with the defaults of the example scripts; ValueError where those raise one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--prefiller-hosts", nargs="+", default=["localhost"])
    parser.add_argument("--prefiller-ports", nargs="+", type=int, default=[8001])
    parser.add_argument("--decoder-hosts", nargs="+", default=["localhost"])
    parser.add_argument("--decoder-ports", nargs="+", type=int, default=[8002])
    parser.add_argument("--max-retries", type=int, default=3)
    parser.add_argument("--retry-delay", type=float, default=0.001)
    if not layerwise:
        parser.add_argument("--max-waiting-retries", type=int, default=3)
        parser.add_argument("--waiting-retry-interval", type=float, default=10)
        parser.add_argument("--workers", type=int, default=1)
        parser.add_argument("--log-level", default="INFO")
    args = parser.parse_args(argv)
    if len(args.prefiller_hosts) != len(args.prefiller_ports):
        raise ValueError("Number of prefiller hosts must match number of prefiller ports")
    if len(args.decoder_hosts) != len(args.decoder_ports):
        raise ValueError("Number of decoder hosts must match number of decoder ports")
    if layerwise and args.host in ("0.0.0.0", "::"):  # noqa: S104 -- refused, not bound
        raise ValueError(
            f"--host {args.host} cannot be used: decode instances post to the metaserver at this address, "
            "so it has to be one they can reach"
        )
    return args


class Proxy:
    """The proxy's handlers and the load of its backends."""

    def __init__(self, args: argparse.Namespace, layerwise: bool) -> None:
        self.args, self.layerwise = args, layerwise
        self.prefill = [Backend(h, p) for h, p in zip(args.prefiller_hosts, args.prefiller_ports, strict=True)]
        self.decode = [Backend(h, p) for h, p in zip(args.decoder_hosts, args.decoder_ports, strict=True)]
        self.pending: dict[str, tuple[str, Json]] = {}
        self.session: aiohttp.ClientSession | None = None
        self.app = web.Application(client_max_size=2**26)
        self.app.add_routes([web.post(path, self._generate) for path in ENDPOINTS])
        self.app.add_routes([web.get("/healthcheck", self._healthcheck), web.get("/v1/models", self._models)])
        if layerwise:
            self.app.add_routes([web.post("/v1/metaserver", self._metaserver)])
        self.app.cleanup_ctx.append(self._client)

    async def _client(self, _: web.Application) -> Any:
        self.session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None))
        yield
        await self.session.close()

    async def _healthcheck(self, _: web.Request) -> web.Response:
        counts = {"prefill_instances": len(self.prefill), "decode_instances": len(self.decode)}
        return web.json_response({"status": "ok", **counts})

    async def _models(self, _: web.Request) -> web.Response:
        async with self._http().get(f"{self.prefill[0].url}/v1/models") as answer:
            return web.json_response(await answer.json(), status=answer.status)

    def _http(self) -> aiohttp.ClientSession:
        if self.session is None:
            raise ValueError("the proxy is not running")
        return self.session

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        name = request.headers.get("X-Request-Id") or str(uuid.uuid4())
        try:
            if self.layerwise:
                self.pending[name] = (request.path, body)
                metaserver = f"http://{self.args.host}:{self.args.port}/v1/metaserver"
                params = {"do_remote_decode": False, "do_remote_prefill": True, "metaserver": metaserver}
            else:
                params = await self._prefill(request.path, body, name, {
                    "do_remote_decode": True, "do_remote_prefill": False, "remote_engine_id": None,
                    "remote_block_ids": None, "remote_host": None, "remote_port": None,
                })  # fmt: skip
            return await self._decode(request, body | {"kv_transfer_params": params}, name)
        except BackendError as error:
            return web.json_response(error.body, status=error.status)
        finally:
            self.pending.pop(name, None)

    async def _prefill(self, path: str, body: Json, name: str, params: Json) -> Json:
        """One token from the least loaded prefill instance; the answer's `kv_transfer_params`."""
        short = body | {"stream": False, "max_tokens": 1, "min_tokens": 1, "kv_transfer_params": params}
        short.pop("stream_options", None)
        if "max_completion_tokens" in short:
            short["max_completion_tokens"] = 1
        backend = min(self.prefill, key=lambda b: b.load)
        cost = len(str(body.get("prompt") or body.get("messages")))
        backend.load += cost
        try:
            async with await self._post(backend, path, short, name) as answer:
                content = await answer.json()
                if answer.status != 200:
                    raise BackendError(answer.status, content)
                return content.get("kv_transfer_params") or {}
        finally:
            backend.load -= cost

    async def _decode(self, request: web.Request, body: Json, name: str) -> web.StreamResponse:
        """The decode instance's answer, passed through as it comes."""
        backend = min(self.decode, key=lambda b: b.load)
        cost = len(str(body.get("prompt") or body.get("messages")))
        backend.load += cost
        try:
            async with await self._post(backend, request.path, body, name) as answer:
                kept = {k: v for k, v in answer.headers.items() if k in ("Content-Type", "Server")}
                response = web.StreamResponse(status=answer.status, headers=kept | {"X-Request-Id": name})
                await response.prepare(request)
                async for part in answer.content.iter_any():
                    await response.write(part)
                return response
        finally:
            backend.load -= cost

    async def _post(self, backend: Backend, path: str, body: Json, name: str) -> aiohttp.ClientResponse:
        """POST with retries on connection errors; BackendError when none of them helps."""
        headers = {"X-Request-Id": name}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        delay = self.args.retry_delay
        for attempt in range(1, self.args.max_retries + 1):
            try:
                return await self._http().post(backend.url + path, json=body, headers=headers)
            except aiohttp.ClientConnectionError as error:
                print(f"attempt {attempt} of {backend.url}{path} failed: {error}", flush=True)
                await asyncio.sleep(min(delay, MOST_DELAY))
                delay *= 2
        message = f"{backend.url}{path} did not answer after {self.args.max_retries} attempts"
        raise BackendError(500, {"error": {"message": message, "type": "InternalServerError", "code": 500}})

    async def _metaserver(self, request: web.Request) -> web.Response:
        """A decode instance says where it wants a request's KV; prefill is started with that."""
        params = await request.json()
        name = next((name for name in self.pending if name in str(params["request_id"])), None)
        if name is None:
            return web.json_response({"error": f"unknown request {params['request_id']}"}, status=404)
        path, body = self.pending[name]
        try:
            await self._prefill(path, body, name, params)
        except BackendError as error:
            return web.json_response(error.body, status=error.status)
        return web.json_response({"status": "ok"})


class BackendError(Exception):
    """An answer of a backend that goes back to the client as it is."""

    def __init__(self, status: int, body: Json) -> None:
        super().__init__(str(body))
        self.status, self.body = status, body


def main(layerwise: bool, argv: list[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT."""
    args = parse(argv, layerwise)
    proxy = Proxy(args, layerwise)
    kind = "layerwise" if layerwise else "plain"
    print(f"{kind} proxy: {len(proxy.prefill)} prefill, {len(proxy.decode)} decode instances", flush=True)
    web.run_app(
        proxy.app,
        host=args.host,
        port=args.port,
        print=lambda *_: print("INFO:     Application startup complete.", flush=True),
        handle_signals=True,
    )
