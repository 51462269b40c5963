"""Run a verb on another device, by its own edgectl, over SSH, and know whether the answer is its own.

A forced command in authorized_keys runs in place of the verb, and a login shell may print whatever it likes. So the
device's edgectl is asked to begin its answer with a line of its own, the mark: what comes before it is no answer, and
where it never comes, nothing was done.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence

from edged.core.errors import ControlError
from edged.core.protocol import BEGIN_WITH_MARK, MARK
from edged.ctl import ssh, tables
from edged.ctl.client import UnreachableError

_BLOCK = 64 << 10
_MAX_NOISE = 64 << 10


def run(args: argparse.Namespace, words: Sequence[str]) -> int:
    """Run the command line `words` on the one device that is named; the exit code is that of the verb there.

    Raises:
        ControlError: several devices are named, or another command was run.
        UnreachableError: the connection could not be made, or it broke.
    """
    if len(args.host) > 1:
        raise ControlError(f"{args.verb} works on one device at a time", hint="name one --host")
    host = args.host[0]
    try:
        process = subprocess.Popen(
            ssh.command(args.ssh, host, ["edgectl", BEGIN_WITH_MARK, *_without_host(words)], ssh.GIVE_UP),
            stdout=subprocess.PIPE,
        )
    except OSError as error:
        raise ssh.not_run(args.ssh, error) from error
    assert process.stdout
    with process:
        try:
            said = _pass_on(process.stdout.fileno())
        except BaseException:
            process.kill()
            raise
    code = process.wait()
    if code == ssh.SSH_FAILED or code < 0:
        raise UnreachableError(f"{host}: the connection failed or broke", hint=f"try it: ssh {host}")
    if said is not None:
        last = tables.plain(next((line for line in reversed(said.splitlines()) if line.strip()), "nothing")[:200])
        raise ControlError(
            f"{host} did not run `edgectl {args.verb}`; what ran instead ended ({code}) and said: {last}",
            hint="install edged there, and see that the key's line in authorized_keys there lets it run commands",
        )
    return code


def _without_host(words: Sequence[str]) -> list[str]:
    rest = iter(words)
    ours = ("--host", "--ssh")
    return [word for word in rest if not (word.startswith(ours) and ("=" in word or next(rest, "") is not None))]


def _pass_on(source: int) -> str | None:
    """Copy what follows the mark to standard output; what was said in its place, None where it came."""
    heard = b""
    while (at := _end_of_mark(heard)) < 0:
        data = os.read(source, _BLOCK)
        if not data or len(heard) > _MAX_NOISE:
            return heard.decode(errors="replace")
        heard += data
    data = heard[at:]
    sys.stdout.flush()
    while True:
        while data:
            data = data[os.write(sys.stdout.fileno(), data) :]
        data = os.read(source, _BLOCK)
        if not data:
            return None


def _end_of_mark(heard: bytes) -> int:
    """Where the answer begins, -1 where the mark, a line of its own, is not there yet."""
    if heard.startswith(MARK):
        return len(MARK)
    at = heard.find(b"\n" + MARK)
    return at if at < 0 else at + 1 + len(MARK)
