"""Request proxies of prefill/decode deployments, with command lines and behaviour of the engine's example scripts.

Plain (connectors that pull): prefill is asked first for one token and answers with where its KV is; decode gets the
original request with that. Instances come and go with `/instances/add` and `/instances/remove`. Layerwise: decode is
asked first, with the address of this proxy's metaserver; it posts there where it wants the KV, and the proxy then
sends the prompt to a prefill instance with that.

Failures look as they do behind the originals (v0.21.0rc1): a prefill instance that fails is the client's status 500 in
plain text; one that fails behind the layerwise proxy leaves the client waiting for as long as the decode instance does;
a decode instance that fails is status 200 with nothing, or not all, of the answer.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import ipaddress
import json
import os
import sys
import traceback
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

from .http import access_line, error_headers, json_answer

Json = dict[str, Any]
SERVER = "ascent-engine-simulator"
ROLES = ("prefill", "decode")
LOOK_SECONDS = 5.0  # for an instance that is to be added
KV_WEIGHT = 0.3  # share of a prefill instance's load that KV counts which decode has not fetched yet
ALL_ADDRESSES = ("0.0.0.0", "::", "0:0:0:0:0:0:0:0")  # noqa: S104 -- refused, not bound


@dataclass
class Backend:
    """One engine's API and the load given to it."""

    host: str
    port: int
    tokens: float = 0.0
    kv: float = 0.0

    @property
    def name(self) -> str:
        """As it is written in requests about instances."""
        return f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """Base of its endpoints."""
        try:
            bracket = isinstance(ipaddress.ip_address(self.host), ipaddress.IPv6Address)
        except ValueError:
            bracket = False
        return f"http://[{self.host}]:{self.port}" if bracket else f"http://{self.name}"

    @property
    def priority(self) -> float:
        """The lower, the sooner it is chosen."""
        return self.tokens + self.kv * KV_WEIGHT


@dataclass
class Pool:
    """The instances of one role; tainted ones get new requests only when there is no other."""

    backends: list[Backend]
    tainted: set[str] = field(default_factory=set)

    def pick(self) -> Backend:
        """The least loaded instance, the first of equals."""
        if not self.backends:
            raise RuntimeError("No available servers")
        return min(self.backends, key=lambda b: (b.name in self.tainted, b.priority))


def parse(argv: list[str] | None, layerwise: bool) -> argparse.Namespace:
    """Arguments with the defaults of the example scripts; ValueError where those raise one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--host", default="localhost")
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
        parser.add_argument("--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"])
    args = parser.parse_args(argv)
    if layerwise and args.host in ALL_ADDRESSES:
        raise ValueError(
            "Decoder hosts will access Proxy host:port/metaserver, to avoid configuration errors, the Wildcard Address "
            f"{args.host} is not allowed for proxy"
        )
    if len(args.prefiller_hosts) != len(args.prefiller_ports):
        raise ValueError("Number of prefiller hosts must match number of prefiller ports")
    if len(args.decoder_hosts) != len(args.decoder_ports):
        raise ValueError("Number of decoder hosts must match number of decoder ports")
    return args


def prefill_load(length: int) -> float:
    """Load of a prompt on a prefill instance; `length` is the bytes of the request."""
    return length / 4 * 0.0345 + 120.0745


def one_token(body: Json) -> Json:
    """The request that makes a prefill instance compute the prompt and no more."""
    short = body | {"stream": False, "max_tokens": 1, "min_tokens": 1}
    short.pop("stream_options", None)
    if "max_completion_tokens" in short:
        short["max_completion_tokens"] = 1
    return short


class Proxy:
    """What both proxies share: their instances, and how they talk to them."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.pools = {
            "prefill": Pool([Backend(h, p) for h, p in zip(args.prefiller_hosts, args.prefiller_ports, strict=True)]),
            "decode": Pool([Backend(h, p) for h, p in zip(args.decoder_hosts, args.decoder_ports, strict=True)]),
        }
        self.session: aiohttp.ClientSession | None = None
        self.app = web.Application(client_max_size=2**26, middlewares=[self._frame])
        for endpoint in ("/completions", "/chat/completions"):
            self.app.add_routes([web.post(f"/v1{endpoint}", self._generate)])
        self.app.add_routes([web.get("/healthcheck", self._healthcheck)])
        self.app.add_routes([web.post("/reset_prefix_cache", self._reset)])
        self.app.cleanup_ctx.append(self._client)

    @web.middleware
    async def _frame(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """Errors as the originals' HTTP server gives them."""
        try:
            response = await handler(request)
        except web.HTTPException as error:
            response = json_answer({"detail": error.reason}, error.status, error_headers(error))
        except (ConnectionResetError, asyncio.CancelledError):
            raise  # the client has gone
        except Exception:
            say(f"Error occurred in disagg prefill proxy server - {request.path.removeprefix('/v1')} endpoint")
            say(traceback.format_exc())
            response = web.Response(text="Internal Server Error", status=500)
        if not response.prepared:
            response.headers["Server"] = SERVER
        say(f"INFO:     {access_line(request, response.status)}")
        return response

    async def _client(self, _: web.Application) -> AsyncIterator[None]:
        self.session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=None), connector=aiohttp.TCPConnector(limit=0)
        )
        yield
        await self.session.close()

    def _http(self) -> aiohttp.ClientSession:
        if self.session is None:
            raise ValueError("the proxy is not running")
        return self.session

    def _health(self) -> Json:
        return {"status": "ok", **{f"{role}_instances": len(pool.backends) for role, pool in self.pools.items()}}

    async def _healthcheck(self, _: web.Request) -> web.Response:
        return json_answer(self._health())

    async def _reset(self, request: web.Request) -> web.Response:
        failed = []
        for backend in self.pools["prefill"].backends + self.pools["decode"].backends:
            try:
                async with self._http().post(f"{backend.url}/reset_prefix_cache", params=request.query) as answer:
                    answer.raise_for_status()
            except aiohttp.ClientError as error:
                say(f"reset_prefix_cache failed for {backend.url}: {error}")
                failed.append(backend.url)
        return json_answer({"failed": failed}, 500) if failed else web.Response()

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        raise NotImplementedError

    async def _post(self, backend: Backend, path: str, body: Json, name: str) -> aiohttp.ClientResponse:
        """POST until an instance answers with success; the last failure after `--max-retries`."""
        headers = {"Authorization": f"Bearer {os.environ.get('OPENAI_API_KEY')}", "X-Request-Id": name}
        for attempt in range(1, self.args.max_retries + 1):
            try:
                answer = await self._http().post(backend.url + path, json=body, headers=headers)
                if answer.status < 400:
                    return answer
                text = await answer.text()
                answer.release()
                error: Exception = RuntimeError(f"Client error '{answer.status}' for url '{answer.url}': {text}")
            except aiohttp.ClientError as failure:
                error = failure
            say(f"Attempt {attempt} failed for {path.removeprefix('/v1')}: {error}")
            if attempt < self.args.max_retries:
                await asyncio.sleep(self.args.retry_delay * 2 ** (attempt - 1))
        say(f"All {self.args.max_retries} attempts failed for {path.removeprefix('/v1')}.")
        raise error

    async def _relay(self, request: web.Request, asked: Asked) -> web.StreamResponse:
        """The decode instance's answer, passed on as it comes.

        The answer's head goes out before decode is asked, so that whatever fails then is a short answer.
        """
        kind = "text/event-stream; charset=utf-8" if asked.body.get("stream") else "application/json"
        response = web.StreamResponse(headers={"Content-Type": kind, "Server": SERVER})
        await response.prepare(request)
        try:
            again = True
            while again:
                again = False
                async with await self._post(asked.decode, request.path, asked.body, asked.name) as answer:
                    async for chunk in answer.content.iter_any():
                        self._delivered(asked)
                        if asked.recomputed(chunk):
                            await self._reassign(request.path, asked)
                            again = True
                            break
                        await response.write(asked.corrected(chunk))
        except (aiohttp.ClientError, RuntimeError) as error:
            say(f"Error during streaming from decoder {asked.decode.url}: {error} while handling request {asked.name}")
        return response

    def _delivered(self, _asked: Asked) -> None:
        """Called with each part of an answer that decode gives."""

    async def _reassign(self, _path: str, _asked: Asked) -> None:
        """Called when decode gave a request back; by default the same instance gets it again."""


@dataclass
class Asked:
    """One request of a client on its way, with what has come back of its answer."""

    name: str
    body: Json
    length: int
    decode: Backend
    prefill: Backend | None = None
    kv_reserved: bool = False
    written: str = ""
    tokens: int = 0
    retries: int = 0

    def __post_init__(self) -> None:
        self.origin = copy.deepcopy(self.body)

    def recomputed(self, chunk: bytes) -> bool:
        """Note a part of the answer; whether decode gave the request back to be computed anew.

        The body then holds what was written as part of the prompt.
        """
        choice, usage = _choice(chunk)
        if choice is None:
            return False
        delta, message = choice.get("delta") or {}, choice.get("message") or {}
        self.written += delta.get("content") or message.get("content") or choice.get("text") or ""
        self.tokens += 1 if self.body.get("stream") else usage.get("completion_tokens", 0)
        if choice.get("stop_reason") != "recomputed":
            return False
        self.retries += 1
        if "messages" in self.body:
            self.body["messages"][0]["content"] = self.origin["messages"][0].get("content", "") + self.written
        else:
            self.body["prompt"] = self.origin.get("prompt", "") + self.written
        self.body["max_tokens"] = self.origin.get("max_tokens", 16) - self.tokens + self.retries
        return True

    def corrected(self, chunk: bytes) -> bytes:
        """The part as the client gets it: a whole answer after a recomputation holds all of its text."""
        if not self.retries or self.body.get("stream"):
            return chunk
        whole = json.loads(chunk)
        choice = whole["choices"][0]
        choice.update({"message": choice["message"] | {"content": self.written}} if "message" in choice else
                      {"text": self.written})  # fmt: skip
        return json.dumps(whole).encode()


def _choice(chunk: bytes) -> tuple[Json | None, Json]:
    """The first choice and the usage of a part that is one JSON object, or one event of a stream."""
    try:
        whole = json.loads(chunk.decode().strip().removeprefix("data: "))
        return whole["choices"][0], whole.get("usage") or {}
    except (UnicodeDecodeError, ValueError, KeyError, IndexError, TypeError):
        return None, {}


class PlainProxy(Proxy):
    """Prefill first."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        self.requests = 0
        self.joining: dict[str, tuple[str, Backend, int]] = {}
        self.app.add_routes([web.post("/instances/add", self._add), web.post("/instances/remove", self._remove)])
        self.app.cleanup_ctx.append(self._watch)

    def _health(self) -> Json:
        return super()._health() | {"request_num": self.requests}

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        data = await request.read()
        self.requests += 1
        asked: Asked | None = None
        try:
            asked = await self._assign(request.path, json.loads(data), len(data))
            return await self._relay(request, asked)
        finally:
            if asked:
                self._delivered(asked)
                asked.decode.tokens -= asked.length
            self.requests -= 1

    async def _assign(self, path: str, body: Json, length: int) -> Asked:
        """Compute the prompt on one prefill instance and choose who goes on."""
        prefill, name = self.pools["prefill"].pick(), str(uuid.uuid4())
        prefill.kv += prefill_load(length)
        places = {"remote_engine_id": None, "remote_block_ids": None, "remote_host": None, "remote_port": None}
        wanted = {"do_remote_decode": True, "do_remote_prefill": False, **places}
        try:
            async with await self._post(prefill, path, one_token(body | {"kv_transfer_params": wanted}), name) as got:
                params = (await got.json()).get("kv_transfer_params")
            decode = self.pools["decode"].pick()
        except BaseException:
            prefill.kv = max(prefill.kv - prefill_load(length), 0.0)
            raise
        decode.tokens += length
        return Asked(name, body | ({"kv_transfer_params": params} if params else {}), length, decode, prefill, True)

    def _delivered(self, asked: Asked) -> None:
        """Decode has the KV as soon as it answers."""
        if asked.kv_reserved and asked.prefill:
            asked.prefill.kv = max(asked.prefill.kv - prefill_load(asked.length), 0.0)
            asked.kv_reserved = False

    async def _reassign(self, path: str, asked: Asked) -> None:
        asked.decode.tokens -= asked.length
        body = {key: value for key, value in asked.body.items() if key != "kv_transfer_params"}
        fresh = await self._assign(path, body, len(json.dumps(body)))
        asked.name, asked.body, asked.length = fresh.name, fresh.body, fresh.length
        asked.decode, asked.prefill, asked.kv_reserved = fresh.decode, fresh.prefill, True

    async def _add(self, request: web.Request) -> web.Response:
        role, backends, message = await self._instances(request, "add")
        if role:
            known = {backend.name for backend in self.pools[role].backends} | set(self.joining)
            fresh = [backend for backend in backends if backend.name not in known]
            self.joining |= {backend.name: (role, backend, 0) for backend in fresh}
            if fresh:
                message = f"Instances {[backend.name for backend in fresh]} are waiting to be added."
        return self._told(role, message)

    async def _remove(self, request: web.Request) -> web.Response:
        role, backends, message = await self._instances(request, "remove")
        names = {backend.name for backend in backends}
        if role and self.requests:
            self.pools[role].tainted |= names
            message = f"Instances {[b.name for b in backends]} are isolated and waiting to be removed."
        elif role:
            self._drop(role, names)
        return self._told(role, message)

    def _drop(self, role: str, names: set[str]) -> None:
        pool = self.pools[role]
        pool.backends = [backend for backend in pool.backends if backend.name not in names]
        pool.tainted -= names
        for name in names:
            self.joining.pop(name, None)

    async def _instances(self, request: web.Request, verb: str) -> tuple[str | None, list[Backend], str]:
        """(role or None, instances, message) of a request to add or remove some."""
        body = await request.json()
        role, given = body.get("type", ""), body.get("instances", [])
        parts = [one.split(":") for one in ([given] if isinstance(given, str) else given)]
        backends = [Backend(host, int(port)) for host, port in parts]
        if role not in ROLES:
            return None, [], f"Instance type {role!r} is not supported. Only 'prefill' and 'decode' are allowed."
        return role, backends, f"{verb} {role} instances: {[backend.name for backend in backends]}."

    def _told(self, role: str | None, message: str) -> web.Response:
        if role is None:
            return json_answer({"error": message})
        lists = {f"current_{name}_instances": [b.name for b in pool.backends] for name, pool in self.pools.items()}
        return json_answer({"message": message, **lists})

    async def _watch(self, _: web.Application) -> AsyncIterator[None]:
        task = asyncio.create_task(self._listen())
        yield
        task.cancel()

    async def _listen(self) -> None:
        """Take in instances that answer by now, and let go of isolated ones once no request is under way."""
        while True:
            for name, (role, backend, tries) in list(self.joining.items()):
                say(f"Checking instance {name}...")
                if await self._answers(backend):
                    del self.joining[name]
                    self.pools[role].backends.append(backend)
                elif tries + 1 >= self.args.max_waiting_retries:
                    say(f"Instance {name} was not added to the proxy.")
                    del self.joining[name]
                else:
                    self.joining[name] = role, backend, tries + 1
            for role, pool in self.pools.items():
                if pool.tainted and not self.requests:
                    self._drop(role, set(pool.tainted))
            await asyncio.sleep(self.args.waiting_retry_interval)

    async def _answers(self, backend: Backend) -> bool:
        headers = {"Authorization": f"Bearer {os.environ.get('OPENAI_API_KEY')}"}
        limit = aiohttp.ClientTimeout(total=LOOK_SECONDS)
        try:
            async with self._http().get(f"{backend.url}/v1/models", headers=headers, timeout=limit) as answer:
                return answer.status < 400
        except (aiohttp.ClientError, TimeoutError):
            return False


class LayerwiseProxy(Proxy):
    """Decode first; prefill when decode has said where it wants the KV."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        self.pending: dict[str, tuple[str, str, Json, int]] = {}
        self.app.add_routes([web.post("/v1/metaserver", self._metaserver)])

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        data = await request.read()
        body, name = json.loads(data), str(uuid.uuid4())
        # The id that the engine makes of the header, with which it comes back.
        engine_id = f"cmpl-{name}-0" if request.path == "/v1/completions" else f"chatcmpl-{name}"
        self.pending[engine_id] = name, request.path, copy.deepcopy(body), len(data)
        metaserver = f"http://{self.args.host}:{self.args.port}/v1/metaserver"
        params = {"do_remote_decode": False, "do_remote_prefill": True, "metaserver": metaserver}
        decode = self.pools["decode"].pick()
        decode.tokens += len(data)
        try:
            return await self._relay(request, Asked(name, body | {"kv_transfer_params": params}, len(data), decode))
        finally:
            decode.tokens -= len(data)
            self.pending.pop(engine_id, None)

    async def _metaserver(self, request: web.Request) -> web.Response:
        """A decode instance says where it wants a request's KV; prefill is started with that."""
        params = await request.json()
        known = self.pending.get(str(params.get("request_id")))
        if known is None:
            raise RuntimeError(f"Post metaserver failed with: unknown request {params.get('request_id')}")
        name, path, body, length = known
        prefill, load = self.pools["prefill"].pick(), prefill_load(length)
        prefill.tokens += load
        prefill.kv += load
        try:
            async with await self._post(
                prefill, path, one_token(body | {"kv_transfer_params": params}), name
            ) as answer:
                await answer.read()
        except (aiohttp.ClientError, RuntimeError) as error:
            say(f"Post metaserver failed with: {error}")
        finally:
            prefill.tokens -= load
            prefill.kv = max(prefill.kv - load, 0.0)
        return json_answer(None)


def say(text: str) -> None:
    """One line of the proxy's log."""
    print(text, flush=True)


def main(layerwise: bool, argv: list[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT."""
    args = parse(argv, layerwise)
    proxy: Proxy = LayerwiseProxy(args) if layerwise else PlainProxy(args)
    prefill, decode = (len(proxy.pools[role].backends) for role in ROLES)
    say(f"Initialized {prefill} prefill clients and {decode} decode clients.")
    try:
        web.run_app(
            proxy.app,
            host=args.host,
            port=args.port,
            access_log=None,
            print=lambda *_: say("INFO:     Application startup complete."),
        )
    except OSError as error:
        say(f"ERROR:    [Errno {error.errno}] {error.strerror}")
        sys.exit(1)
