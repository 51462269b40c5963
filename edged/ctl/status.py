"""Show the state of the daemon and of all parts, with a remedy below each part that is not running.

The exit code is 0 only if the daemon and all configured parts are running.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from edged.core.answers import STATUS, ConfigAnswer, MqttAnswer, SinkAnswer, StatusAnswer
from edged.core.errors import quantity
from edged.ctl import exit_codes as exits
from edged.ctl import models, pipelines, sources, tables
from edged.ctl import spool as spool_verb
from edged.ctl.client import connect


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add no arguments."""


def run(args: argparse.Namespace) -> int:
    """Print the answer."""
    status = connect(args.runtime_dir).call(STATUS)
    if args.json:
        tables.show_json(status)
    else:
        tables.show(_lines(status))
    return exits.DONE if status["state"] == "running" else exits.NOT_RUNNING


def _lines(status: StatusAnswer) -> Iterator[str]:
    yield from _daemon(status)
    yield from _mqtt(status["mqtt"])
    yield from _config(status["config"])
    if status["pipelines"]:
        yield ""
        yield from pipelines.lines(status["pipelines"])
    if status["sources"]:
        yield ""
        yield from sources.lines(status["sources"])
    if status["models"]:
        yield ""
        yield from models.lines(status["models"])
    if status["sinks"]:
        yield ""
        yield from _sinks(status["sinks"])


def _daemon(status: StatusAnswer) -> Iterator[str]:
    state, device = status["state"], tables.plain(status["device"])
    yield f"{tables.dot(state)} edged {status['version']} on {device}: {state}, up {tables.duration(status['uptime'])}"
    yield from tables.remedy(status["health"])
    yield f"    memory  {tables.size(status['memory']['rss_bytes'])}"
    if status["clock"]["synchronised"]:
        yield "    clock   synchronised"
    else:
        yield "    clock   not synchronised: results say so until a time source is reached"


def _mqtt(mqtt: MqttAnswer) -> Iterator[str]:
    spool = mqtt["spool"]
    link = "connected to" if mqtt["connected"] else "not connected to"
    broker = f"{link} {tables.plain(mqtt['broker'])}" if mqtt["broker"] else "no broker"
    ago = mqtt["last_sent_ago"]
    last = "" if ago is None else f" (the last {tables.duration(ago)} ago)"
    sent, reconnects = quantity(mqtt["sent"], "result"), quantity(mqtt["reconnects"], "reconnect")
    yield f"    mqtt    {broker}, {sent} sent{last}, {reconnects}"
    yield from tables.remedy(mqtt["health"])
    waiting = f"{spool_verb.waiting(spool['depth'])} ({tables.size(spool['bytes'])})"
    yield f"    spool   {waiting}, {spool['dropped']} dropped, {spool['parked']} refused by the broker"
    if "health" in spool:
        yield from tables.remedy(spool["health"])
    if mqtt["broker"] and "disk" in spool:
        yield f"            {spool_verb.loss(spool['disk'])}"


def _config(config: ConfigAnswer) -> Iterator[str]:
    yield f"    config  {tables.plain(', '.join(config['files'])) or 'none'}"
    if config["error"]:
        yield "      the files have changed and are refused; the configuration before the change stays in effect:"
        for problem in config["error"]["problems"]:
            yield f"      {tables.plain(problem)}"
        yield from tables.advice("correct the files: edgectl config check; then: edgectl reload")


def _sinks(sinks: list[SinkAnswer]) -> Iterator[str]:
    rows = [
        tables.Row(sink["name"], sink["health"], [str(sink["sent"]), str(sink["failed"]), str(sink["dropped"])])
        for sink in sinks
    ]
    return tables.parts("SINK", (">SENT", ">FAILED", ">DROPPED"), rows)
