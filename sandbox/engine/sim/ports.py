"""Ports that the engine binds beside those of its API, its group and its KV transfer; nothing is said on them.

- KV events (--kv-events-config): the endpoint's port, and for each further data-parallel rank the next one.
- The data-parallel coordinator of a group over several processes: two ports that the system picks, on the head, and the
  rendezvous port of the ranks, which VLLM_DP_MASTER_PORT may name.
"""

from __future__ import annotations

import os
import socket

from .config import Settings
from .log import EngineError

__all__ = ["Ports"]


class Ports:
    """The listening sockets of one process."""

    def __init__(self, config: Settings) -> None:
        self.config = config
        self.sockets: list[socket.socket] = []

    def open_coordinator(self) -> None:
        """On the head of a group over several processes."""
        config = self.config
        if not config.is_head or config.data == config.data_local:
            return
        given = os.environ.get("VLLM_DP_MASTER_PORT")
        for port in (0, 0, int(given or 0)):
            try:
                self._bind(config.address, port)
            except OSError as error:
                raise EngineError(
                    "The server socket has failed to listen on any local network address. "
                    f"port: {port}, message: {os.strerror(error.errno or 0)}",
                    kind="torch.distributed.DistNetworkError",
                    who=config.core(0),
                ) from error

    def open_ranks(self) -> None:
        """What each local rank publishes on."""
        if self.config.events_port is None:
            return
        for rank in self.config.ranks:
            port = self.config.events_port + rank
            try:
                self._bind("", port)
            except OSError as error:
                raise EngineError(
                    f"{os.strerror(error.errno or 0)} (addr='tcp://*:{port}')",
                    kind="zmq.error.ZMQError",
                    who=self.config.core(rank),
                ) from error

    def _bind(self, address: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        opened = socket.socket(family, socket.SOCK_STREAM)
        self.sockets.append(opened)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((address, port))
        opened.listen()

    def close(self) -> None:
        """Give all of them back."""
        for opened in self.sockets:
            opened.close()
