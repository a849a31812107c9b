"""A way to a server that breaks: every connection is cut after so many bytes, while told to."""

from __future__ import annotations

import contextlib
import socket
import threading
from urllib.parse import urlsplit


class Dropping:
    """A TCP proxy in front of `url`. While `cuts` is above 0 a connection is cut in the midst of
    its answer, and `cuts` goes down.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._to = (parts.hostname or "", parts.port or 0)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self.cuts = 0
        self.made = 0
        """Cuts that happened."""
        self.served = 0
        """Pieces of answers that were passed on."""
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self._server.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            server = socket.create_connection(self._to)
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=self._pass_on, args=(source, target), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                if self.cuts > 0 and source.getpeername() == self._to:
                    self.cuts -= 1
                    self.made += 1
                    target.sendall(data[:40])
                    break
                target.sendall(data)
                self.served += source.getpeername() == self._to
        except OSError:
            pass  # the other side was cut
        finally:
            for end in (source, target):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)  # the other thread still reads from it
                end.close()
