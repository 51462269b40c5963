"""List the updates since the start of the daemon, with model, origin and state."""

from __future__ import annotations

import argparse
import time

from edged.core.update_answers import JOBS, JobAnswer
from edged.ctl import exit_codes as exits
from edged.ctl import tables
from edged.ctl.client import connect


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add no arguments."""


def run(args: argparse.Namespace) -> int:
    """List the updates, the oldest first."""
    jobs = connect(args.runtime_dir).call(JOBS)
    if args.json:
        tables.show_json(jobs)
    elif jobs:
        tables.show(tables.table(["JOB", "BEGAN", "MODEL", "STATE", "FROM", ""], [_row(job) for job in jobs]))
    else:
        tables.show(["no updates since the start of the daemon"])
    return exits.DONE


def _row(job: JobAnswer) -> list[str]:
    began = time.strftime("%d %b %H:%M:%S", time.localtime(job["began"])) if job["began"] else "-"
    model = f"{job['model']} {job['version']}".strip() or "-"
    return [job["job"], began, model, job["state"].replace("_", " "), job["origin"] or "-", job["text"] or job["last"]]
