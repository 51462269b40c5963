"""List the models, with version, origin, runtime, delegate and self-test.

Below a model with an accelerator are the state of the accelerator, the reason and the remedy. Below a model with
several versions are all installed and rejected versions, for `rollback` and `forget`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from edged.core.answers import MODELS, AcceleratorAnswer, ModelAnswer, ProofAnswer, RunnerAnswer
from edged.core.errors import quantity, some
from edged.ctl import exit_codes as exits
from edged.ctl import tables
from edged.ctl.client import connect

_COLUMNS = ("VERSION", "ORIGIN", "PIPELINES", ">SIZE", "RUNS ON", "SELF-TEST")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add no arguments."""


def run(args: argparse.Namespace) -> int:
    """Print the answer."""
    models = connect(args.runtime_dir).call(MODELS)
    if args.json:
        tables.show_json(models)
    else:
        tables.show(lines(models))
    return exits.DONE


def lines(models: list[ModelAnswer]) -> Iterator[str]:
    """Yield the table of models."""
    return tables.parts("MODEL", _COLUMNS, [_row(model) for model in models])


def _row(model: ModelAnswer) -> tables.Row:
    cells = [
        model["version"] or "-",
        model["origin"] or "-",
        some(model["pipelines"], 8, by=",") or "-",
        tables.size(model["bytes"]),
        _runner(model["runner"], isolated=model["isolated"]),
        _proof(model["proof"]),
    ]
    notes = (*_accelerator(model["accelerator"]), *_choice(model["choice"]), *_versions(model))
    return tables.Row(model["name"], model["health"], cells, notes)


def _accelerator(found: AcceleratorAnswer | None) -> Iterator[str]:
    if found is None:
        return
    yield f"      {tables.plain(found['name'])}: {describe_accelerator(found)}"
    yield from tables.advice(found["hint"])


def _choice(why: str) -> Iterator[str]:
    if why:
        yield f"      {tables.plain(why)}"


def _versions(model: ModelAnswer) -> Iterator[str]:
    """Yield the versions of a model, unless left out by a status."""
    if model.get("pinned"):
        yield "      pinned: no other version is installed"
    versions = model.get("versions", [])
    if versions is None:
        yield "      the versions cannot be read from the disk"
    elif len(versions) > 1 or any(each["reason"] for each in versions):
        for each in versions:
            reason = f": {tables.plain(each['reason'])}" if each["reason"] else ""
            yield f"      {each['version']:8} {each['digest'][:12]}  {', '.join(_roles(each['roles']))}{reason}"


def _roles(roles: list[str]) -> Iterator[str]:
    """Yield the roles of a version in the words of the manual; a version under way is on trial until it serves."""
    for role in roles:
        if role != "under way":
            yield role
        elif "serves" in roles or "suspended" in roles:
            yield "on probation"
        else:
            yield "on trial"


def describe_accelerator(found: AcceleratorAnswer) -> str:
    """Return the state of the accelerator of a model, on a line."""
    details = [found["state"], f"for {tables.duration(found['for'])}"]
    if found["state"] == "accelerated" and found["off_processor"] is not None:
        details.append(f"{found['off_processor']:.0%} of the time off the processor")
    why = f": {tables.plain(found['reason'])}" if found["reason"] else ""
    return ", ".join(details) + why


def _runner(runner: RunnerAnswer | None, *, isolated: bool) -> str:
    if runner is None:
        return "-"
    share = f", {runner['delegated']} of {runner['nodes']} nodes" if runner["delegate"] != "cpu" else ""
    threads = f", {runner['threads']} threads" if runner["threads"] > 1 else ""
    alone = ", isolated" if isolated else ""
    return f"{runner['delegate']}{share} ({runner['runtime']}{threads}{alone})"


def _proof(proof: ProofAnswer | None) -> str:
    if proof is None:
        return "-"
    return f"{quantity(proof['samples'], 'sample')}, ±{_number(proof['worst'])}"


def _number(value: float | None) -> str:
    return "nan" if value is None else f"{value:.3g}"
