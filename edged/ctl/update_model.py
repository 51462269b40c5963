"""Install a new version of a model on this device, or on others over SSH, and follow the update.

BUNDLE is an .edgm file, "-" for standard input, or a URL for the device to fetch. After a cut, run the command again to
continue. The device checks the signatures of the bundle, tests the new version, serves with the new version and watches
the results. The old version serves until the new version has answered, and again if the new version fails.

A delta (`edgectl pack --delta-from`) beside the bundle, or named with --delta, is sent instead if the device has the
base version; if the delta fails, the bundle is sent. For a URL with the suffix .edgd, the device expects the bundle at
the same URL with the suffix .edgm.

With --model, BUNDLE is a bare .tflite file. Window, preprocessing, labels and postprocessing are those of the replaced
version, and the tensors must be the same. A bare file has no golden samples, so the test proves little. New labels in
the TFLite metadata replace the old labels, with a message; the file is refused if the decision names a missing label.
Boards with required signatures refuse bare files: pack and sign the model.

The update continues on the device after Ctrl-C. With --confirm-within the version is rolled back unless confirmed in
time with `edgectl confirm MODEL`.
"""

from __future__ import annotations

import argparse
import re
import shlex
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edged.core.errors import BundleError, ControlError
from edged.core.update_answers import FETCH, JOB_WATCH, RECEIVE_DONE, RECEIVE_OPEN, TransferAnswer
from edged.ctl import exit_codes as exits
from edged.ctl import tables
from edged.ctl.client import UnreachableError, connect
from edged.ctl.progress import Console, InstallOutcome, InstallTerms, Reporter, already_present, follow, report_terms
from edged.ctl.receive import CHUNK, DAEMON_SECONDS, give

if TYPE_CHECKING:
    from edged.ctl.push import Push
    from edged.ctl.upload import Upload

_GIVE_UP_SECONDS = 600.0
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("bundle", metavar="BUNDLE", help='an .edgm file, "-" for standard input, or a URL')
    parser.add_argument("--model", metavar="NAME", help="BUNDLE is a bare .tflite file for the model NAME")
    parser.add_argument("--version", metavar="N.N", help="version of a bare file (default: the next)")
    parser.add_argument("--delta", default="", metavar="NAME.edgd", help="delta to try first, for the same version")
    parser.add_argument(
        "--confirm-within",
        type=seconds,
        default=0.0,
        metavar="TIME",
        help="roll back unless confirmed in time: 90s, 10m, 2h",
    )
    parser.add_argument("--allow-downgrade", action="store_true", help="allow an older version than the current")
    parser.add_argument(
        "--give-up-after",
        type=seconds,
        metavar="TIME",
        help="over SSH: time to try without progress (10m)",
    )


def run(args: argparse.Namespace) -> int:
    """Send the version, follow the update, and return the exit code of the end."""
    terms: InstallTerms = {"allow_downgrade": args.allow_downgrade, "confirm_within": args.confirm_within}
    console = Console(as_json=args.json)
    _refuse_contradictions(args)
    try:
        uploads = [] if _is_url(args.bundle) else _open(args)
    except BundleError as error:
        outcome = InstallOutcome("refused", error.message, error.hint)
        Reporter(console).end(outcome)
        return outcome.code
    if args.host:
        return _push(args, uploads, terms, console)
    reporter = Reporter(console)
    _remind(reporter, args.confirm_within, _edgectl(args))
    outcome = _here(args, uploads, terms, reporter)
    reporter.end(outcome)
    return outcome.code


def seconds(text: str) -> float:
    """Return a time such as 90, 90s, 10m, 2h or 1d in seconds, at most 30 days, the limit of devices.

    Raises:
        ValueError: the text is no time, or too long a time, refused here before the bundle is sent.
    """
    match = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)([smhd]?)", text)
    if not match or float(match[1]) * _UNITS[match[2]] > _UNITS["d"] * 30:
        raise ValueError
    return float(match[1]) * _UNITS[match[2]]


def _refuse_contradictions(args: argparse.Namespace) -> None:
    """Raise ControlError for contradictory options."""
    if args.give_up_after is not None and not args.host:
        raise ControlError("--give-up-after goes with --host", hint="leave it out: a daemon takes a file at once")
    if args.host and _is_url(args.bundle):
        raise ControlError("update-model over SSH takes a file, not a URL", hint="ssh HOST edgectl update-model URL")
    if args.delta and _is_url(args.bundle):
        raise ControlError(
            "--delta names a file, and a URL is fetched by the device",
            hint="give the delta's own URL, which ends in .edgd, with the bundle beside it",
        )
    if args.delta and args.model:
        raise ControlError("there are no deltas of bare files", hint="pack it: edgectl pack --delta-from OLD.edgm")
    if args.model is None and (args.version or args.bundle.endswith(".tflite")):
        raise ControlError("a bare .tflite file names no model", hint="say so with --model NAME")


def _edgectl(args: argparse.Namespace, host: str = "") -> str:
    """Return the beginning of a command line for the same daemon."""
    return shlex.join(["edgectl", *(["--host", host] if host else []), *args.runtime_option])


def _remind(reporter: Reporter, confirm_within: float, edgectl: str) -> None:
    if confirm_within:
        time = tables.duration(confirm_within)
        reporter.step("update.reminder", f"once it serves, confirm it within {time}: {edgectl} confirm MODEL")


# On this device


def _here(
    args: argparse.Namespace, uploads: Sequence[Upload], terms: InstallTerms, reporter: Reporter
) -> InstallOutcome:
    ways: Sequence[Upload | None] = uploads or [None]
    *deltas, last = ways
    for delta in deltas:
        outcome = _bring(args, delta, terms, reporter)
        if outcome.state != "full_needed":
            return outcome
    return _bring(args, last, terms, reporter)


def _bring(args: argparse.Namespace, upload: Upload | None, terms: InstallTerms, reporter: Reporter) -> InstallOutcome:
    try:
        answer = _send(args, upload, terms, reporter) if upload else _fetch(args, terms, reporter)
    except UnreachableError:
        raise
    except (BundleError, ControlError) as error:
        return InstallOutcome("refused", error.message, error.hint)
    if upload and "missing" in answer:
        reporter.step("update.base_missing", f"{upload.title} cannot be used: the base version is not there")
        return InstallOutcome("full_needed", "the full bundle is needed")
    if upload and "present" in answer:
        return already_present(answer, upload.version, "is what serves already")
    job = answer.get("job", "")
    try:
        return follow(connect(args.runtime_dir).stream(JOB_WATCH, id=job), reporter)
    except KeyboardInterrupt:
        reporter.step("update.detached", f"the update continues; follow with: {_edgectl(args)} job wait {job}")
        raise


def _fetch(args: argparse.Namespace, terms: InstallTerms, reporter: Reporter) -> TransferAnswer:
    bare = {"model": args.model, "version": args.version}
    answer = connect(args.runtime_dir).call(FETCH, url=args.bundle, **bare, **terms)
    reporter.step("update.fetching", "the device fetches it")
    return answer


def _send(args: argparse.Namespace, upload: Upload, terms: InstallTerms, reporter: Reporter) -> TransferAnswer:
    """Send an upload, and return the answer: the `job`, `present`, or the `missing` base."""
    call = connect(args.runtime_dir).call
    allow = terms["allow_downgrade"]
    answer = call(RECEIVE_OPEN, timeout=DAEMON_SECONDS, allow_downgrade=allow, **upload.announcement)
    if "offset" in answer:
        offset = answer["offset"]
        reporter.step("update.sending", f"giving {upload.title} to the daemon, {tables.size(upload.size)}")
        while offset < upload.size:
            offset = give(args.runtime_dir, upload.id, offset, upload.read(offset, CHUNK))
            reporter.progress(offset, upload.size)
        call = connect(args.runtime_dir).call
        answer = call(RECEIVE_DONE, timeout=DAEMON_SECONDS, id=upload.id, origin=args.bundle[-200:], **terms)
    report_terms(answer, terms, reporter)
    return answer


def _open(args: argparse.Namespace) -> Sequence[Upload]:
    """Open the uploads; the imports for bundles are late, as URLs do without."""
    from edged.ctl.upload import open_bare, open_uploads

    if args.model:
        return [open_bare(args.bundle, args.model, args.version)]
    return open_uploads(args.bundle, args.delta)


def _is_url(bundle: str) -> bool:
    return "://" in bundle


# On others, over SSH


def _push(args: argparse.Namespace, uploads: Sequence[Upload], terms: InstallTerms, console: Console) -> int:
    from edged.ctl.push import Push

    alone = len(args.host) == 1
    stall = _GIVE_UP_SECONDS if args.give_up_after is None else args.give_up_after
    pushes = []
    for host in dict.fromkeys(args.host):
        reporter = Reporter(console, "" if alone else host)
        _remind(reporter, args.confirm_within, _edgectl(args, host))
        push = Push(
            host, uploads, terms, reporter, ssh=args.ssh, may_ask=alone, stall=stall, options=args.runtime_option
        )
        pushes.append((push, reporter))
    return _all_at_once(args, pushes, console)


def _all_at_once(args: argparse.Namespace, pushes: Sequence[tuple[Push, Reporter]], console: Console) -> int:
    """Push to each board in a thread, and return the exit code if all are equal."""
    outcomes: dict[str, InstallOutcome] = {}

    def bring(push: Push, reporter: Reporter) -> None:
        outcome = push.run()
        reporter.end(outcome)
        outcomes[push.host] = outcome

    threads = [threading.Thread(target=bring, args=pair, daemon=True) for pair in pushes]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except KeyboardInterrupt:
        for push, reporter in pushes:
            if push.host not in outcomes:
                reporter.step("update.detached", _farewell(push, _edgectl(args, push.host)))
        raise
    if len(pushes) > 1 and not console.as_json:
        rows = [[host, outcome.state.replace("_", " "), outcome.text] for host, outcome in outcomes.items()]
        tables.show(["", *tables.table(["BOARD", "OUTCOME", ""], rows)])
    codes = {outcome.code for outcome in outcomes.values()}
    return codes.pop() if len(codes) == 1 and len(outcomes) == len(pushes) else exits.FAILED


def _farewell(push: Push, edgectl: str) -> str:
    if push.job:
        return f"the update continues; follow with: {edgectl} job wait {push.job}"
    return "run the command again to continue: received bytes are kept"
