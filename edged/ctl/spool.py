"""Show the results waiting for the broker, and the results refused by the broker with the reasons.

`edgectl spool retry NUMBER...` sends refused messages again, and `edgectl spool drop NUMBER...` drops refused messages;
`--all` selects all refused messages. The exit code is 1 if a message is missing.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from edged.core.answers import SPOOL, SPOOL_DROP, SPOOL_RETRY, DiskAnswer, SpoolAnswer
from edged.core.errors import ControlError, quantity
from edged.ctl import exit_codes as exits
from edged.ctl import tables
from edged.ctl.client import connect


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("action", nargs="?", choices=("show", "retry", "drop"), default="show")
    parser.add_argument("numbers", nargs="*", type=int, metavar="NUMBER", help="number of a refused message")
    parser.add_argument("--all", action="store_true", help="select all refused messages")


def run(args: argparse.Namespace) -> int:
    """Print the spool, or act on refused messages."""
    if args.action == "show" and (args.numbers or args.all):
        raise ControlError("messages are given without an action", hint="edgectl spool retry, or drop")
    if args.action == "show":
        spool = connect(args.runtime_dir).call(SPOOL)
        if args.json:
            tables.show_json(spool)
        else:
            tables.show(_lines(spool))
        return exits.DONE
    if bool(args.numbers) == args.all:
        raise ControlError("no message is selected", hint="give their numbers, or --all")
    asked = len(set(args.numbers))
    verb = SPOOL_RETRY if args.action == "retry" else SPOOL_DROP
    answer = connect(args.runtime_dir).call(verb, numbers="all" if args.all else args.numbers)
    if args.json:
        tables.show_json(answer)
    else:
        done = "wait to be sent again" if args.action == "retry" else "are forgotten"
        of_all = f" of {asked}" if answer["count"] < asked else ""
        tables.show([f"{answer['count']}{of_all} messages {done}"])
    return exits.DONE if answer["count"] >= max(1, asked) else exits.BAD


def waiting(count: int) -> str:
    """Return the number of waiting results, in words."""
    return "1 result waits" if count == 1 else f"{count} results wait"


def loss(disk: DiskAnswer | None) -> str:
    """Return the loss by a power cut, in words."""
    if disk is None:
        return "a power cut loses every waiting result"
    old = f", up to {disk['unsaved_seconds']:.1f} s old"
    now = quantity(disk["unsaved"], "result") + old if disk["unsaved"] else "nothing"
    if disk["loss_seconds"] is None:
        worst = "every waiting result, as the disk takes no data"
    elif disk["loss_seconds"]:
        about = f" (about {disk['loss_messages']})" if disk["loss_messages"] else ""
        worst = f"the results of {disk['loss_seconds']:.1f} s{about}"
    else:
        worst = "a result that is just being saved"
    return f"a power cut now loses {now}; at the worst moment {worst}"


def _lines(spool: SpoolAnswer) -> Iterator[str]:
    health = spool["health"]
    in_memory = spool["depth"] - spool["on_disk"]
    oldest = "" if spool["oldest"] is None else f" (the oldest {tables.duration(spool['oldest'])} old)"
    places = f": {in_memory} in memory{oldest}, {spool['on_disk']} on disk" if spool["depth"] else ""
    yield f"{tables.dot(health['state'])} {waiting(spool['depth'])}{places}"
    yield from tables.remedy(health)
    yield f"    memory   {tables.size(spool['bytes'])}"
    yield f"    sending  {_drain(spool)}"
    yield from _disk(spool["disk"])
    yield f"    losses   {loss(spool['disk'])}"
    yield f"    dropped  {spool['dropped']}"
    for pipeline, reasons in spool["drops"].items():
        for reason, count in reasons.items():
            yield f"      {tables.plain(pipeline)}: {count} {tables.plain(reason)}"
    if spool["refused"]:
        yield ""
        columns = ("NUMBER", "PIPELINE", ">SEQ", ">BYTES", "TOPIC", "REFUSED BECAUSE")
        rows = [
            [
                str(each["number"]),
                each["pipeline"],
                str(each["seq"]),
                str(each["bytes"]),
                each["topic"],
                each["reason"],
            ]
            for each in spool["refused"]
        ]
        yield from tables.table(columns, rows)


def _drain(spool: SpoolAnswer) -> str:
    left = spool["seconds_to_empty"]
    empty = "" if not spool["depth"] or left is None else f", empty in {tables.duration(left)}"
    rate = f"{spool['rate']:.3g}" if spool["rate"] < 100 else f"{spool['rate']:.0f}"
    return f"{rate} results a second{empty}; {spool['replayed']} sent late (replayed) since the start"


def _disk(disk: DiskAnswer | None) -> Iterator[str]:
    if disk is None:
        yield "    disk     none"
        return
    written = "unknown" if disk["written"] is None else tables.size(disk["written"])
    budget = f" of {tables.size(disk['daily_bytes'])}" if disk["daily_bytes"] else ""
    file = f"{tables.plain(disk['path'])}, {tables.size(disk['file_bytes'])}"
    yield f"    disk     {file}, {written}{budget} written today"
    commit = disk["commit"]
    if commit["p50"] is not None:
        p50, p99 = tables.milliseconds(commit["p50"]), tables.milliseconds(commit["p99"])
        yield f"    commit   takes {p50} ms (p50), {p99} ms (p99)"
    if disk["late"]:
        late = quantity(disk["late"], "result")
        yield f'      {late} of durability "always" went on before being on disk'
    for aside in disk["set_aside"]:
        saved = f"{quantity(aside['saved'], 'result')} saved from the file"
        yield f"      a damaged file is now {tables.plain(aside['path'])}; {saved}"
