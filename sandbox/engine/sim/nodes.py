"""A rank over several nodes with the executor mp: --nnodes, --node-rank, --master-addr, --master-port.

Node 0 serves and is where the others meet, at the master port. They run workers only. Messages are those of `dp.Link`:
HELLO (node, what must agree) -> INIT -> READY. A connection that ends takes both ends down, as a collective does.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from .config import Settings
from .dp import RETRY_SECONDS, Link, dead_engine
from .log import EngineError, line
from .timing import timeout

GROUP_SECONDS = 1800.0  # how long a process group waits for its members
NOTICE_SECONDS = 60.0


class FirstNode:
    """The node that serves; the workers of the others report here."""

    def __init__(self, config: Settings, failed: Callable[[EngineError], None]) -> None:
        self.config, self.failed = config, failed
        self.links: dict[int, Link] = {}
        self.ready: set[int] = set()
        self.changed = asyncio.Event()
        self.server: asyncio.Server | None = None

    async def listen(self) -> None:
        """Bind the master port."""
        address, port = self.config.master
        try:
            self.server = await asyncio.start_server(self._serve, address, port, limit=2**20)
        except OSError as error:
            raise EngineError(
                "The server socket has failed to listen on any local network address. "
                f"port: {port}, useIpv6: false, code: {-(error.errno or 0)}, name: {_name(error)}, "
                f"message: {os.strerror(error.errno or 0)}",
                kind="torch.distributed.DistNetworkError",
                who=self.config.worker(0),
            ) from error

    async def all_ready(self) -> None:
        """Wait for the workers of all nodes; EngineError when they do not come."""
        deadline = asyncio.get_running_loop().time() + timeout(GROUP_SECONDS)
        while len(self.ready) < self.config.nodes - 1:
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                joined = (len(self.links) + 1) * self.config.local_world
                raise EngineError(
                    f"Timed out after {GROUP_SECONDS + 1:.0f} seconds waiting for clients. "
                    f"{joined}/{self.config.world} clients joined.",
                    kind="torch.distributed.DistStoreError",
                    who=self.config.worker(0),
                )
            self.changed.clear()
            try:
                await asyncio.wait_for(self.changed.wait(), min(left, timeout(NOTICE_SECONDS)))
            except TimeoutError:
                line(self.config.core(0), "No available shared memory broadcast block found in 60 seconds. This "
                     "typically happens when some processes are hanging or doing some time-consuming work.",
                     source="shm_broadcast.py:542")  # fmt: skip

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link, node = Link(reader, writer), None
        try:
            hello = await link.receive()
            node = int(hello["node"])
            mine = self.config.fingerprint()
            if hello["config"] != mine or node in self.links or not 0 < node < self.config.nodes:
                different = [key for key, value in mine.items() if hello["config"].get(key) != value]
                link.send(
                    "REFUSED", message=f"node {node} does not fit this group: {', '.join(different) or 'its rank'}"
                )
                await writer.drain()
                node = None
                return
            self.links[node] = link
            link.send("INIT")
            while (await link.receive())["status"] == "READY":
                self.ready.add(node)
                self.changed.set()
        except (ConnectionError, ValueError, KeyError) as error:
            if node is not None:
                self.failed(dead_engine("APIServer", f"Connection closed by peer: the workers of node {node} are gone "
                                        f"({error})."))  # fmt: skip
        except asyncio.CancelledError:
            return  # the end of the process
        finally:
            link.close()

    def close(self) -> None:
        """Stop listening and let go of the other nodes."""
        if self.server:
            self.server.close()
        for link in self.links.values():
            link.close()


class OtherNode:
    """A node that runs workers only."""

    def __init__(self, config: Settings) -> None:
        self.config = config
        self.who = config.worker(0, config.node * config.local_world)
        self.link: Link | None = None

    async def join(self) -> None:
        """Connect to the first node, retrying while it is not up; EngineError when that does not happen."""
        address, port = self.config.master
        try:
            async with asyncio.timeout(timeout(GROUP_SECONDS)):
                while self.link is None:
                    try:
                        self.link = Link(*await asyncio.open_connection(address, port, limit=2**20))
                    except OSError:
                        await asyncio.sleep(timeout(RETRY_SECONDS))
                self.link.send("HELLO", node=self.config.node, config=self.config.fingerprint())
                answer = await self.link.receive()
        except TimeoutError:
            raise EngineError(
                f"The client socket has timed out after {GROUP_SECONDS * 1000:.0f}ms while trying to connect to "
                f"({address}, {port}).",
                kind="torch.distributed.DistNetworkError",
                who=self.who,
            ) from None
        except ConnectionError as error:
            raise self._lost(error) from None
        if answer["status"] == "REFUSED":
            raise EngineError(answer["message"], kind="RuntimeError", who=self.who)

    async def work(self) -> None:
        """Report that the workers have loaded, and stay until the first node goes, which ends this one."""
        if self.link is None:
            raise ValueError("work comes after join")
        self.link.send("READY")
        try:
            await self.link.receive()
        except ConnectionError as error:
            raise self._lost(error) from None

    def _lost(self, error: Exception) -> EngineError:
        return EngineError(f"Connection closed by peer: the first node is gone ({error}).", kind="RuntimeError",
                           who=self.who)  # fmt: skip

    def close(self) -> None:
        """Leave the group."""
        if self.link:
            self.link.close()


def _name(error: OSError) -> str:
    return "EADDRINUSE" if "in use" in str(error) else "EADDRNOTAVAIL"
