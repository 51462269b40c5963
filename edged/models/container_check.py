"""The check of a container's bytes as they arrive: the head is approved first, then each chunk is verified."""

from __future__ import annotations

from collections.abc import Callable

from edged.core.container import ContainerReader, Head
from edged.core.errors import EdgedError


class ContainerCheck:
    """Check of a container during the transfer. `approve` gets the complete head, and raises BundleError to end the
    transfer.

    Signatures can thus be verified before the files are transferred.
    """

    def __init__(self, approve: Callable[[Head], None]) -> None:
        self._approve = approve
        self._reader = ContainerReader()
        self._approved = False

    @property
    def total(self) -> int | None:
        """Return the length of the container, once the head has arrived."""
        return self._reader.head.size if self._reader.head and self._approved else None

    @property
    def verified(self) -> int:
        """Return the position up to which chunks are verified."""
        return self._reader.verified if self._approved else 0

    def feed(self, data: bytes, /) -> None:
        """Read the next bytes. Raises BundleError."""
        try:
            for _ in self._reader.feed(data):
                self._judge()
            self._judge()
        except EdgedError:  # the verdict may be impossible at present, and the container is sent again
            if not self._approved:
                self._reader = ContainerReader()
            raise

    def _judge(self) -> None:
        if self._reader.head and not self._approved:
            self._approve(self._reader.head)
            self._approved = True
