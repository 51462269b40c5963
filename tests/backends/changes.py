"""What an accelerator says of itself, without what it says of its models."""

from collections.abc import Callable

from edged.core.acceleration import LOADING, AcceleratorStatus


def changes(hear: Callable[[AcceleratorStatus], None]) -> Callable[[AcceleratorStatus], None]:
    """Passes on each standing of a device that is another than the one before; at first it is being loaded."""
    last = ("cpu", LOADING)

    def tell(standing: AcceleratorStatus) -> None:
        nonlocal last
        if (standing.state, standing.reason) != last:
            last = standing.state, standing.reason
            hear(standing)

    return tell
