"""`edgectl`: the command line of the device.

Only the module of the verb is imported: a question to a running daemon must not wait for libraries of inference. The
module of a verb has `add_arguments(parser)` and `run(args) -> int`. `run` returns an exit code of `exits`, prints the
answer on standard output, as JSON if `args.json` is set, and raises EdgedError for failures.

Every verb finds in `args` the global options: `config`, a list of files; `state_dir`, a folder; `runtime_dir`, a folder
or None for the usual places; `runtime_option`, the same as options of a command line; `json`; and `host` and `ssh`, the
devices to work on and the command to reach them. Files and folders are strings, as pathlib is slow to import.

With --host a verb is run on the named device, by the edgectl there (remote.py), except `update-model`, which has
local files to send.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from edged import __version__
from edged.core.errors import EdgedError, closest
from edged.core.protocol import BEGIN_WITH_MARK, MARK
from edged.ctl import exit_codes as exits
from edged.ctl import tables
from edged.ctl.client import UnreachableError
from edged.ctl.config_paths import settle

VERBS = {
    "status": ("edged.ctl.status", "show the state of the daemon and remedies for problems"),
    "watch": ("edged.ctl.watch", "print each prediction"),
    "pipelines": ("edged.ctl.pipelines", "list pipelines, with counters and latency"),
    "sources": ("edged.ctl.sources", "list sources, with rates and losses"),
    "models": ("edged.ctl.models", "list models, with versions and origins; `model` works on files"),
    "spool": ("edged.ctl.spool", "list messages waiting for the broker or refused by the broker"),
    "update-model": ("edged.ctl.update_model", "install a new version of a model, and report the progress"),
    "jobs": ("edged.ctl.jobs", "list the updates since the start of the daemon"),
    "job": ("edged.ctl.job", "follow an update, or show the steps"),
    "confirm": ("edged.ctl.confirm", "keep a version installed with --confirm-within"),
    "rollback": ("edged.ctl.rollback", "go back to the previous version"),
    "pin": ("edged.ctl.pin", "keep the current version of a model"),
    "forget": ("edged.ctl.forget", "allow a rejected version again"),
    "forget-device": ("edged.ctl.forget_device", "clear the retained messages of a removed device"),
    "receive": ("edged.ctl.receive", "serve update-model over SSH, run by sshd"),
    "config": ("edged.ctl.config", "check the configuration, or show the effective settings"),
    "release": ("edged.ctl.release", "try a quarantined accelerator again"),
    "reload": ("edged.ctl.reload", "read the configuration again, and change only the differences"),
    "doctor": ("edged.ctl.doctor", "look for problems of this device"),
    "support-bundle": ("edged.ctl.support_bundle", "collect data for a helper, without secrets"),
    "devices": ("edged.ctl.devices", "list accelerators, and the requirements of missing accelerators"),
    "prove": ("edged.ctl.prove", "compare models on accelerators with the CPU, sample by sample"),
    "tune": ("edged.ctl.tune", "measure all ways to run a model here, and use the fastest"),
    "infer": ("edged.ctl.infer", "run a model once on a file, without the daemon"),
    "bench": ("edged.ctl.bench", "measure the speed of models here"),
    "init": ("edged.ctl.init", "write a first configuration, from options and answers"),
    "model": ("edged.ctl.model", "draft a manifest for a .tflite file; `models` lists installed models"),
    "pack": ("edged.ctl.pack", "make a bundle of a model, ready to be sent to boards"),
    "inspect": ("edged.ctl.inspect", "show the contents of a bundle"),
    "sign": ("edged.ctl.sign", "sign a bundle with an SSH key"),
    "verify": ("edged.ctl.verify", "verify the digests and the signatures of a bundle, like a board"),
    "metrics": ("edged.ctl.metrics", "print all metrics in the format of Prometheus"),
    "asyncapi": ("edged.ctl.asyncapi", "the MQTT interface of this device, as an AsyncAPI document"),
    "version": ("edged.ctl.version", "print the versions of edged and of the packages for inference"),
}

SSH = "ssh"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line, and return the exit code."""
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # shows "?" on terminals without the dot
    try:
        words = _answered(sys.argv[1:] if argv is None else argv)
        args = _parse(words)
        code: int = _there(args, words) if args.host and args.verb != "update-model" else args.run(args)
        sys.stdout.flush()
    except EdgedError as error:
        _complain(error)
        return exits.UNREACHABLE if isinstance(error, UnreachableError) else exits.FAILED
    except KeyboardInterrupt:
        return exits.INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit fails
        return exits.BROKEN_PIPE
    except OSError as error:  # standard output is a full disk
        print(f"edgectl: {error}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.FAILED
    return code


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line in two steps: the verb, then the arguments of the verb."""
    parser = outer_parser()
    args, rest = parser.parse_known_args(argv)
    if args.verb is None:
        parser.error("name a verb, as in `edgectl status`; `edgectl --help` lists them")
    if args.verb not in VERBS:
        parser.error(_no_such_verb(args.verb))
    verb_parser(args.verb).parse_intermixed_args([*rest, *args.rest], args)  # options may stand between the words
    args.host = args.host or []
    args.runtime_option = ["--runtime-dir", args.runtime_dir] if args.runtime_dir else []
    tables.name_daemon(args.runtime_option)
    args.runtime_dir = args.runtime_dir or os.environ.get("EDGED_RUNTIME_DIR")
    if not args.host:  # the edgectl of another device has other defaults
        settle(args)
    args.run = import_module(VERBS[args.verb][0]).run
    return args


def verb_parser(verb: str) -> argparse.ArgumentParser:
    """Return the parser of a verb, with the options common to all verbs."""
    module = import_module(VERBS[verb][0])
    parser = argparse.ArgumentParser(
        prog=f"edgectl {verb}", description=module.__doc__, parents=[common_options()], allow_abbrev=False
    )
    module.add_arguments(parser)
    return parser


def outer_parser() -> argparse.ArgumentParser:
    """Return the parser of the options before the verb, the verb and the unparsed rest."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:{width}}  {summary}" for verb, (_, summary) in VERBS.items())
    codes = "\n".join(f"  {code:<{width}}  {meaning}" for code, meaning in exits.MEANINGS.items())
    parser = argparse.ArgumentParser(
        prog="edgectl",
        usage="edgectl [OPTIONS] VERB ...",
        description="Ask and steer the inference daemon of this device.",
        epilog=f"verbs (edgectl VERB --help says more):\n{verbs}\n\nexit codes:\n{codes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common_options()],
        allow_abbrev=False,
    )
    parser.set_defaults(
        config=None,
        runtime_dir=None,
        state_dir=None,
        json=False,
        host=None,
        ssh=os.environ.get("EDGECTL_SSH", SSH),
    )
    parser.add_argument("--version", action="version", version=f"edgectl {__version__}")
    parser.add_argument("verb", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def common_options() -> argparse.ArgumentParser:
    """Return the options allowed before and after the verb."""
    options = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    options.add_argument(
        "--config",
        metavar="FILE",
        action="append",
        help="the configuration, read with conf.d/*.toml beside (EDGED_CONFIG; the daemon's; /etc/edged/edged.toml)",
    )
    options.add_argument("--runtime-dir", metavar="DIR", help="folder of the daemon's socket (EDGED_RUNTIME_DIR)")
    options.add_argument(
        "--state-dir",
        metavar="DIR",
        help="data of the daemon (EDGED_STATE_DIR; the daemon's; /var/lib/edged)",
    )
    options.add_argument("--json", action="store_true", help="answer in JSON")
    options.add_argument(
        "--host",
        metavar="[USER@]HOST",
        action="append",
        type=host,
        help="run on another device, over SSH; update-model takes several",
    )
    options.add_argument(
        "--ssh", metavar="COMMAND", type=ssh_command, help="SSH command, with options (EDGECTL_SSH; ssh)"
    )
    return options


def host(text: str) -> str:
    """Return the name of a device, as for ssh. Raises ArgumentTypeError."""
    user, at, name = text.rpartition("@")
    if not name or text.startswith("-") or name.startswith("-") or (at and not user) or not _one_word(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no [USER@]HOST")
    return text


def ssh_command(text: str) -> str:
    """Return a command line in the syntax of a shell. Raises ArgumentTypeError."""
    if text == SSH:
        return text
    import shlex  # imported late, as local verbs do without

    try:
        understood = bool(shlex.split(text))
    except ValueError:
        understood = False
    if not understood:
        raise argparse.ArgumentTypeError(f"{text!r} is no command")
    return text


def _one_word(text: str) -> bool:
    return text.isprintable() and len(text.split()) == 1


def _answered(words: Sequence[str]) -> Sequence[str]:
    """Print the mark if requested by the first word, and return the rest of the command line."""
    if words[:1] != [BEGIN_WITH_MARK]:
        return words
    sys.stdout.buffer.write(MARK)
    sys.stdout.buffer.flush()
    return words[1:]


def _there(args: argparse.Namespace, words: Sequence[str]) -> int:
    """Run the command line on the named device."""
    from edged.ctl import remote

    return remote.run(args, words)


def _complain(error: EdgedError) -> None:
    print(f"edgectl: {error.message}", file=sys.stderr)
    for line in error.hint.splitlines():
        print(f"  {tables.commands(line)}", file=sys.stderr)


def _no_such_verb(verb: str) -> str:
    close = closest(verb, VERBS)
    advice = f"did you mean {close!r}?" if close else "`edgectl --help` lists them"
    return f"there is no verb {verb!r}: {advice}"
