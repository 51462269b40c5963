"""The check of a container's bytes as they arrive: the head is approved first, then each chunk is verified."""

from __future__ import annotations

from collections.abc import Callable

from edged.core.container import ContainerReader, Head
from edged.core.errors import EdgedError


class ContainerCheck:
    """Reads along in a container. `approve` is shown the head as soon as it is there, and raises BundleError to end it.

    So a signature can be judged before the files are paid for.
    """

    def __init__(self, approve: Callable[[Head], None]) -> None:
        self._approve = approve
        self._reader = ContainerReader()
        self._approved = False

    @property
    def total(self) -> int | None:
        """The length of the container, once its head is there."""
        return self._reader.head.size if self._reader.head and self._approved else None

    @property
    def verified(self) -> int:
        """Up to where its chunks are right."""
        return self._reader.verified if self._approved else 0

    def feed(self, data: bytes, /) -> None:
        """Read the next bytes. Raises BundleError."""
        try:
            for _ in self._reader.feed(data):
                self._judge()
            self._judge()
        except EdgedError:  # it may also be that nobody can judge it now, and it is sent again
            if not self._approved:
                self._reader = ContainerReader()
            raise

    def _judge(self) -> None:
        if self._reader.head and not self._approved:
            self._approve(self._reader.head)
            self._approved = True
