"""Follow an update with `job wait ID`, with the exit codes of `update-model`; or show the state with `job show ID`.

`edgectl jobs` lists the ids.
"""

from __future__ import annotations

import argparse

from edged.core.update_answers import JOB, JOB_WATCH
from edged.ctl import exit_codes as exits
from edged.ctl import tables
from edged.ctl.client import connect
from edged.ctl.progress import Console, Reporter, follow


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("what", choices=("wait", "show"), help="follow the update to the end, or show the state")
    parser.add_argument("id", metavar="ID", help="number of the job, as in `edgectl jobs`")


def run(args: argparse.Namespace) -> int:
    """Run the verb."""
    if args.what == "wait":
        reporter = Reporter(Console(as_json=args.json))
        outcome = follow(connect(args.runtime_dir).stream(JOB_WATCH, id=args.id), reporter)
        reporter.end(outcome)
        return outcome.code
    job = connect(args.runtime_dir).call(JOB, id=args.id)
    if args.json:
        tables.show_json(job)
        return exits.DONE
    title = f"{job['model']} {job['version']}".strip() or "an update"
    tables.show([tables.plain(f"{title} from {job['origin'] or 'somewhere'}: {job['state'].replace('_', ' ')}")])
    first = job["events"][0].get("time", 0.0) if job["events"] else 0.0
    tables.show(
        tables.plain(f"{event.get('time', 0.0) - first:8.1f} s  {event.get('text', '')}") for event in job["events"]
    )
    tables.show(tables.plain(line) for line in [job["text"], *tables.commands(job["hint"]).splitlines()] if line)
    return exits.DONE
