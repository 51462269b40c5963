"""Run a verb on another device over SSH, with the edgectl of the device, and recognise the answer.

A forced command in authorized_keys runs instead of the verb, and a login shell may print text of any kind. So the
edgectl of the device begins the answer with a special line, the mark: output before the mark is no answer, and without
a mark the verb was not run.
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
    """Run the command line `words` on the named device, and return the exit code of the verb.

    Raises:
        ControlError: several devices are named, or another command was run.
        UnreachableError: the connection failed or broke.
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
    """Copy the output after the mark to standard output. Return None, or without a mark the other output."""
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
    """Return the start of the answer after the mark; -1 without a mark on a separate line."""
    if heard.startswith(MARK):
        return len(MARK)
    at = heard.find(b"\n" + MARK)
    return at if at < 0 else at + 1 + len(MARK)
