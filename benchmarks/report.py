"""Results of measures, as a table for people and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Target:
    """Target of a figure: the median of `values`, one a round, is at most the limit, or at least."""

    promise: str
    values: Sequence[float]
    limit: float
    at_least: bool = False

    @property
    def value(self) -> float:
        """Return the median over the rounds."""
        return median(self.values)

    @property
    def met(self) -> bool:
        """Return whether the target is met."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit


@dataclass
class Figure:
    """Quantity with a value a round for each variant, its targets, and notes on the composition."""

    name: str
    unit: str
    variants: dict[str, list[float]]
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def ratios(self, variant: str, to: str) -> list[float]:
        """Return the quotient of two variants in each round."""
        return [one / other for one, other in zip(self.variants[variant], self.variants[to], strict=True)]

    def differences(self, variant: str, to: str) -> list[float]:
        """Return the difference of two variants in each round."""
        return [one - other for one, other in zip(self.variants[variant], self.variants[to], strict=True)]


@dataclass
class Skipped:
    """Measure that this machine does not allow."""

    name: str
    reason: str


def table(results: Sequence[Figure | Skipped]) -> str:
    """Return all results as a table for people."""
    return "\n\n".join("\n".join(_lines(result)) for result in results)


def plain(result: Figure | Skipped) -> dict[str, Any]:
    """Return a result in types of JSON."""
    if isinstance(result, Skipped):
        return {"name": result.name, "skipped": result.reason}
    return {
        "name": result.name,
        "unit": result.unit,
        "variants": {
            name: {"median": median(values), "rounds": values} for name, values in result.variants.items() if values
        },
        "targets": [
            {
                "promise": target.promise,
                "value": target.value,
                "limit": target.limit,
                "at_least": target.at_least,
                "verdict": _verdict(target),
                "rounds": list(target.values),
            }
            for target in result.targets
        ],
        "notes": result.notes,
    }


def _lines(result: Figure | Skipped) -> list[str]:
    if isinstance(result, Skipped):
        return [f"{result.name}", f"  skipped: {result.reason}"]
    lines = [f"{result.name}, {result.unit}".rstrip(", ")]
    width = max(12, *map(len, result.variants))
    for name, values in result.variants.items():
        lines.append(f"  {name:<{width}} {median(values):>10.4g}   ({min(values):.4g} to {max(values):.4g})")
    for target in result.targets:
        lines.append(f"  {target.promise:<52} {target.value:>8.3g}   {_verdict(target)}")
    return lines + [f"  {note}" for note in result.notes]


def _verdict(target: Target) -> str:
    return "met" if target.met else "MISSED"
