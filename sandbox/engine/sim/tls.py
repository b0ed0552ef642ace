"""TLS of the API server: the engine's options --ssl-certfile, --ssl-keyfile and --enable-ssl-refresh."""

from __future__ import annotations

import asyncio
import os
import ssl

from .log import EngineError
from .serving import Serving

LOOK_SECONDS = 1.0


class Terminator:
    """A context that new connections are made with; its certificate is read again when its files are others."""

    def __init__(self, serving: Serving) -> None:
        self.files = (str(serving.certificate), serving.private_key)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._load()
        self.seen = self._stamps()

    def _load(self) -> None:
        try:
            self.context.load_cert_chain(*self.files)
        except (OSError, ssl.SSLError) as error:
            raise EngineError(f"the certificate {self.files[0]} can't be used: {error}") from error

    def _stamps(self) -> list[int]:
        return [os.stat(path).st_mtime_ns for path in self.files if path and os.path.exists(path)]

    async def refresh(self) -> None:
        """Watch the files for as long as the server runs; new ones that can't be used are passed over."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            found = self._stamps()
            if found != self.seen:
                self.seen = found
                try:
                    self._load()
                except EngineError:
                    continue
