"""Published states of an accelerator, without the states of its models."""

from collections.abc import Callable

from edged.core.acceleration import LOADING, AcceleratorStatus


def changes(hear: Callable[[AcceleratorStatus], None]) -> Callable[[AcceleratorStatus], None]:
    """Return a function that passes on each changed status of a device, beginning with the first load."""
    last = ("cpu", LOADING)

    def tell(standing: AcceleratorStatus) -> None:
        nonlocal last
        if (standing.state, standing.reason) != last:
            last = standing.state, standing.reason
            hear(standing)

    return tell
