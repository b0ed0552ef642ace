"""KV cache transfer between prefill and decode over real TCP connections.

Each worker of each local rank listens on `kv_port + rank * world + worker`, world being the devices of a rank and rank
the global one. A transfer is one connection: a JSON line with who asks and for what, then for data a JSON line with
its length and checksum and the bytes. Both sides compare the peer's sizes with their own kv_connector_extra_config.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

from .config import Settings
from .environment import rooted, visible_devices
from .log import EngineError, line
from .timing import timeout

BYTES_PER_TOKEN = 64  # stands for megabytes on the real machine
MOST_BYTES = 65536  # of one transfer between two workers
CONNECT_SECONDS = 10.0
MOST_FETCHED = 1000  # requests that are remembered after their KV has been pulled


class TransferError(Exception):
    """A transfer that did not happen; the request that needed it fails."""


@dataclass
class Held:
    """KV of a prefilled request that waits to be pulled; it is given up when `expiry` comes."""

    rank: int
    tokens: int
    expiry: asyncio.TimerHandle
    pulls_left: int | None = None  # known from the first pull: one for each worker of the decode rank


@dataclass
class Expected:
    """A decode request that waits for pushes: one from each of its own workers' peers."""

    missing: set[int]
    done: asyncio.Future[int] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    received: int = 0


def payload(request_id: str, tokens: int) -> bytes:
    """The bytes that stand for one worker's share of a request's KV."""
    size = min(max(tokens, 1) * BYTES_PER_TOKEN, MOST_BYTES)
    mark = request_id.encode() or b"-"
    return (mark * (size // len(mark) + 1))[:size]


class KvNode:
    """The KV side of one engine process."""

    def __init__(self, config: Settings) -> None:
        if config.kv is None:
            raise ValueError("KvNode needs a KV connector")
        self.config = config
        self.kv = config.kv
        self.held: dict[str, Held] = {}
        self.fetched: OrderedDict[str, int] = OrderedDict()  # tokens of requests whose KV has been pulled
        self.expected: dict[str, Expected] = {}
        self.servers: list[asyncio.Server] = []
        self.sent = dict.fromkeys(config.ranks, 0)  # bytes
        self.received = dict.fromkeys(config.ranks, 0)
        self.moved: Callable[[int], None] = lambda _rank: None  # called with the rank whose counts have changed
        self.released: dict[int, Callable[[str], None]] = {}  # by rank: called with a request whose KV is not needed
        self.abort_seconds = timeout(float(os.environ.get("VLLM_MOONCAKE_ABORT_REQUEST_TIMEOUT", "480")))

    def port(self, rank: int, worker: int = 0) -> int:
        """Handshake port of a worker of a global rank."""
        return self.kv.port + rank * self.config.world + worker

    async def listen(self) -> None:
        """Open all ports of the local ranks; EngineError when one is taken."""
        for rank in self.config.ranks:
            for worker in range(self.config.world):
                port = self.port(rank, worker)

                serve = functools.partial(self._serve, rank, worker)
                try:
                    self.servers.append(await asyncio.start_server(serve, self.config.host_ip, port))
                except OSError as error:
                    raise self._bind_error(rank, port, error) from error
            first, last = self.port(rank), self.port(rank, self.config.world - 1)
            line(
                self.config.core(rank),
                f"KV transfer {self.kv.side}: engine_id={self.kv.engine_id}_dp{rank} listening on "
                f"tcp://{self.config.host_ip}:{first}-{last}",
                source="mooncake_connector.py:412",
            )

    def _bind_error(self, rank: int, port: int, error: OSError) -> EngineError:
        reason = "Address already in use" if "in use" in str(error) else os.strerror(error.errno or 0)
        direction = "receiving" if self.kv.side == "decode" else "sending"
        return EngineError(
            f"{reason} (addr='tcp://{self.config.host_ip}:{port}')",
            kind="zmq.error.ZMQError",
            who=self.config.core(rank),
            lines=(f"KV Cache {direction} thread failed to start",),
        )

    async def close(self) -> None:
        """Stop listening."""
        for server in self.servers:
            server.close()
        for held in self.held.values():
            held.expiry.cancel()

    def peer(self, rank: int, worker: int) -> dict[str, Any]:
        """What a worker of this side says of itself in a handshake."""
        return {
            "side": self.kv.side,
            "engine_id": self.kv.engine_id,
            "dp_size": self.config.data,
            "tp_size": self.config.tensor,
            "tls": self._tls(rank, worker),
        }

    def _tls(self, rank: int, worker: int) -> bool | None:
        """The TLS switch of a worker's device as the node's state file has it now; None where it has none."""
        try:
            device = visible_devices()[(rank - self.config.start_rank) * self.config.world + worker]
            state = json.loads(rooted("/usr/local/dcmi/state.json").read_text(encoding="utf-8"))
            entry = next(one for one in state["devices"] if one["phy_id"] == device)
            return bool(entry["roce"]["tls"]["enabled"])
        except (EngineError, IndexError, OSError, ValueError, KeyError, StopIteration):
            return None

    def _refusal(self, peer: dict[str, Any], own: dict[str, Any]) -> str | None:
        """Why a peer cannot work with this instance, if so. Both ends of a connection come to the same answer."""
        if None not in (peer["tls"], own["tls"]) and peer["tls"] != own["tls"]:
            return "Failed to connect to segment, ret: 103900"
        if peer["engine_id"] == self.kv.engine_id:
            return f"Conflict engine id {peer['engine_id']} with local engine id {self.kv.engine_id}"
        wanted = self.kv.sizes.get(peer["side"])
        real = (peer["dp_size"], peer["tp_size"])
        if wanted and wanted != real:
            return (
                f"KV handshake: peer {peer['side']} runs dp_size={real[0]} tp_size={real[1]}, "
                f"kv_connector_extra_config of this {self.kv.side} says dp_size={wanted[0]} tp_size={wanted[1]}"
            )
        return None

    async def _serve(self, rank: int, worker: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            asked, own = json.loads(await reader.readline()), self.peer(rank, worker)
            refusal = self._refusal(asked["peer"], own)
            if refusal:
                line(self.config.core(rank), refusal, level="ERROR")
                if asked["request_id"] in self.held:
                    self._let_go(asked["request_id"])
                answer: dict[str, Any] = {"ok": False, "error": refusal}
                data = b""
            elif asked["op"] == "pull":
                answer, data = self._pulled(rank, asked)
            else:
                answer, data = await self._pushed(rank, worker, asked, reader), b""
            answer["peer"] = own
            writer.write(json.dumps(answer).encode() + b"\n" + data)
            await writer.drain()
        except (OSError, ValueError, KeyError, asyncio.IncompleteReadError) as error:
            line(self.config.core(rank), f"KV transfer connection broken: {error!r}", level="WARNING")
        except asyncio.CancelledError:
            return  # the end of the process; asyncio would print the cancellation of a server's task as an error
        finally:
            writer.close()

    def _pulled(self, rank: int, asked: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        request_id = asked["request_id"]
        held = self.held.get(request_id)
        if held:
            tokens = held.tokens
            held.pulls_left = (asked["peer"]["tp_size"] if held.pulls_left is None else held.pulls_left) - 1
            if held.pulls_left <= 0:
                self._let_go(request_id)
                self.fetched[request_id] = tokens
                if len(self.fetched) > MOST_FETCHED:
                    self.fetched.popitem(last=False)
        elif request_id in self.fetched:
            # Several choices of one request share what prefill gave for it: the memory is read again after its release.
            tokens = self.fetched[request_id]
            line(
                self.config.core(rank),
                f"MooncakeConnector finish req not in reqs to process. request_id={request_id}. Possible cause: "
                "Request was already completed or not properly tracked.",
                level="WARNING",
                source="mooncake_connector.py:171",
            )
        else:
            return {"ok": False, "error": f"no KV of request {request_id} is held here"}, b""
        data = payload(request_id, tokens)
        self.sent[rank] += len(data)
        self.moved(rank)
        return {"ok": True, "bytes": len(data), "crc": crc32(data)}, data

    async def _pushed(
        self, rank: int, worker: int, asked: dict[str, Any], reader: asyncio.StreamReader
    ) -> dict[str, Any]:
        data = await reader.readexactly(asked["bytes"])
        expected = self.expected.get(asked["request_id"])
        if expected is None or crc32(data) != asked["crc"]:
            return {"ok": False, "error": f"no request {asked['request_id']} waits for this KV here"}
        self.received[rank] += len(data)
        expected.received += asked["tokens"]
        expected.missing.discard(worker)
        if not expected.missing and not expected.done.done():
            expected.done.set_result(expected.received)
        return {"ok": True}

    def _let_go(self, request_id: str) -> None:
        """Nobody needs this request's KV any more."""
        held = self.held.pop(request_id)
        held.expiry.cancel()
        self.released[held.rank](request_id)

    def _expire(self, request_id: str) -> None:
        line(
            self.config.core(self.held[request_id].rank),
            f"Force freed expired request: {request_id}. Reason: Request exceeded timeout threshold "
            f"({self.abort_seconds:g} seconds). Action: Resources have been forcibly released to prevent memory leak.",
            source="mooncake_connector.py:210",
        )
        self._let_go(request_id)

    def hold(self, request_id: str, rank: int, tokens: int, blocks: list[int], last: int) -> dict[str, Any]:
        """Keep a prefilled request's KV for a decode instance to pull; the answer's `kv_transfer_params`.

        `blocks` hold it, `last` is the token that was written.
        What nobody pulls within VLLM_MOONCAKE_ABORT_REQUEST_TIMEOUT is given up.
        """
        expiry = asyncio.get_running_loop().call_later(self.abort_seconds, self._expire, request_id)
        self.held[request_id] = Held(rank, tokens, expiry)
        count = -(-tokens // self.config.serving.block_size)
        return {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_block_ids": [blocks[:count]],
            "remote_engine_id": f"{self.kv.engine_id}_dp{rank}",
            "remote_request_id": request_id,
            "remote_host": self.config.host_ip,
            "remote_port": self.port(rank),
            "remote_ptp_size": self.config.tensor,
            "remote_pcp_size": self.config.prefill_context,
            "remote_dcp_size": 1,
            "remote_multi_nodes_meta_mapping": {},
            "last_token_id": last,
            "num_prompt_blocks": count,
        }

    async def pull(self, rank: int, params: dict[str, Any]) -> None:
        """Fetch a request's KV, each local worker from its peer; TransferError when that fails."""
        share = max(int(params.get("remote_ptp_size", self.config.tensor)) // self.config.tensor, 1)
        request = {"op": "pull", "request_id": params["remote_request_id"]}
        for worker in range(self.config.tensor):
            port = int(params["remote_port"]) + worker * share
            answer, data = await self._talk(str(params["remote_host"]), port, request, b"", self.peer(rank, worker))
            if crc32(data) != answer["crc"]:
                raise TransferError(f"KV of {params['remote_request_id']} arrived damaged")
            self.received[rank] += len(data)

    def expect(self, request_id: str, rank: int, tokens: int) -> tuple[dict[str, Any], asyncio.Future[int]]:
        """Announce a decode request to the metaserver: its parameters, and the future that its KV completes."""
        entry = self.expected[request_id] = Expected(set(range(self.config.tensor)))
        params = {
            "token_ids": [],
            "request_id": request_id,
            "do_remote_prefill": False,
            "do_remote_decode": True,
            "remote_block_ids": [list(range(-(-tokens // self.config.serving.block_size)))],
            "remote_engine_id": f"{self.kv.engine_id}_dp{rank}",
            "remote_host": self.config.host_ip,
            "remote_port": self.port(rank),
            "remote_block_size": self.config.serving.block_size,
            "remote_tp_size": self.config.tensor,
            "remote_pcp_size": self.config.prefill_context,
            "remote_dcp_size": 1,
            "remote_cached_tokens": 0,
        }
        return params, entry.done

    async def push(self, rank: int, params: dict[str, Any], tokens: int) -> None:
        """Send a request's KV to every worker of the decode rank; TransferError when that fails."""
        request_id = str(params["request_id"])
        data = payload(request_id, tokens)
        request = {"op": "push", "request_id": request_id, "tokens": tokens, "bytes": len(data), "crc": crc32(data)}
        for worker in range(int(params["remote_tp_size"])):
            own = self.peer(rank, worker % self.config.world)
            await self._talk(str(params["remote_host"]), int(params["remote_port"]) + worker, request, data, own)
            self.sent[rank] += len(data)

    async def _talk(
        self, host: str, port: int, request: dict[str, Any], data: bytes, own: dict[str, Any]
    ) -> tuple[dict[str, Any], bytes]:
        """One connection: ask, send, and take the answer. `own` is what the asking worker says of itself."""
        try:
            async with asyncio.timeout(timeout(CONNECT_SECONDS)):
                reader, writer = await asyncio.open_connection(host, port)
                try:
                    writer.write(json.dumps(request | {"peer": own}).encode() + b"\n" + data)
                    await writer.drain()
                    answer = json.loads(await reader.readline())
                    refusal = answer.get("error") or self._refusal(answer["peer"], own)
                    if refusal:
                        raise TransferError(refusal)
                    return answer, await reader.readexactly(answer.get("bytes", 0))
                finally:
                    writer.close()
        except (OSError, ValueError, asyncio.IncompleteReadError) as error:
            raise TransferError(f"Failed to connect to target {host}:{port} ({error!r}), ret: -1") from error
