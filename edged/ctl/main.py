"""`edgectl`: the command line of the device.

The first word decides which module is imported, and nothing else is: asking a running daemon must not wait for what
inference needs. A verb's module has `add_arguments(parser)` and `run(args) -> int`, which returns one of `exits`,
prints its answer on standard output, as JSON where `args.json` is set, and raises EdgedError where it cannot be done.

Every verb finds in `args` the global options: `config`, a list of files; `state_dir`, a folder; `runtime_dir`, a folder
or None for wherever a daemon is found; `runtime_option`, how the command line says so; `json`; and `host` and `ssh`,
the devices to work on and how to get there. Files and folders are strings, as pathlib is slow to import.

With --host a verb is run on that device, by its own edgectl (remote.py), all but `update-model`, which has files of
ours to bring.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from edged import __version__
from edged.core.errors import EdgedError
from edged.core.protocol import BEGIN_WITH_MARK, MARK
from edged.ctl import exit_codes as exits
from edged.ctl.client import UnreachableError
from edged.ctl.config_paths import settle

VERBS = {
    "status": ("edged.ctl.status", "how the daemon is, and what to do about whatever is not running"),
    "watch": ("edged.ctl.watch", "every prediction as it is made"),
    "pipelines": ("edged.ctl.pipelines", "what is inferred, and how fast"),
    "sources": ("edged.ctl.sources", "what is measured, and what gets lost"),
    "models": ("edged.ctl.models", "the models that serve, their versions and origins; `model` works on files"),
    "spool": ("edged.ctl.spool", "what waits for the broker, and what the broker refused"),
    "update-model": ("edged.ctl.update_model", "bring a new version of a model, and see it through"),
    "jobs": ("edged.ctl.jobs", "the updates since the daemon began"),
    "job": ("edged.ctl.job", "follow one update, or look at it"),
    "confirm": ("edged.ctl.confirm", "keep a version that was brought with --confirm-within"),
    "rollback": ("edged.ctl.rollback", "go back to the version that served before"),
    "pin": ("edged.ctl.pin", "have a model stay with the version it has"),
    "forget": ("edged.ctl.forget", "let a version that was rejected be tried again"),
    "forget-device": ("edged.ctl.forget_device", "clear what the broker retains of a device that is gone for ever"),
    "receive": ("edged.ctl.receive", "the far end of update-model over SSH"),
    "config": ("edged.ctl.config", "check the configuration, or show what is in effect"),
    "release": ("edged.ctl.release", "try an accelerator again that was quarantined"),
    "reload": ("edged.ctl.reload", "read the configuration again, changing only what changed"),
    "doctor": ("edged.ctl.doctor", "look for what is wrong with this device"),
    "support-bundle": ("edged.ctl.support_bundle", "collect what a helper needs to know, without your secrets"),
    "devices": ("edged.ctl.devices", "accelerators: which are here, and what the others lack"),
    "prove": ("edged.ctl.prove", "hold models on accelerators against the CPU, sample by sample"),
    "tune": ("edged.ctl.tune", "measure every way to run a model here, and go by it"),
    "infer": ("edged.ctl.infer", "run a model once on a file, without the daemon"),
    "bench": ("edged.ctl.bench", "how fast models run here"),
    "init": ("edged.ctl.init", "write a first configuration, asking for what no option says"),
    "model": ("edged.ctl.model", "draft a manifest for a .tflite file; `models` shows the models that serve"),
    "pack": ("edged.ctl.pack", "make a bundle of a model, ready to be sent to boards"),
    "inspect": ("edged.ctl.inspect", "show what is in a bundle"),
    "sign": ("edged.ctl.sign", "sign a bundle with an SSH key"),
    "verify": ("edged.ctl.verify", "verify a bundle as a board does, and who signed it"),
    "metrics": ("edged.ctl.metrics", "everything that is counted, as Prometheus reads it"),
    "asyncapi": ("edged.ctl.asyncapi", "the MQTT interface of this device, as an AsyncAPI document"),
    "version": ("edged.ctl.version", "the versions of edged and of what it runs on"),
}

SSH = "ssh"


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says; the exit code."""
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal that cannot show a dot shows a "?"
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
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains as it flushes at the end
        return exits.BROKEN_PIPE
    except OSError as error:  # standard output is a full disk
        print(f"edgectl: {error}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.FAILED
    return code


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line in two steps: the verb, then what its own module understands."""
    parser = outer_parser()
    args, rest = parser.parse_known_args(argv)
    if args.verb is None:
        parser.error("name a verb, as in `edgectl status`; `edgectl --help` lists them")
    if args.verb not in VERBS:
        parser.error(_no_such_verb(args.verb))
    verb_parser(args.verb).parse_intermixed_args([*rest, *args.rest], args)  # options may stand between the words
    args.host = args.host or []
    args.runtime_option = ["--runtime-dir", args.runtime_dir] if args.runtime_dir else []
    args.runtime_dir = args.runtime_dir or os.environ.get("EDGED_RUNTIME_DIR")
    if not args.host:  # elsewhere, the edgectl there finds its own
        settle(args)
    args.run = import_module(VERBS[args.verb][0]).run
    return args


def verb_parser(verb: str) -> argparse.ArgumentParser:
    """What stands after a verb, and what may stand before it too."""
    module = import_module(VERBS[verb][0])
    parser = argparse.ArgumentParser(
        prog=f"edgectl {verb}", description=module.__doc__, parents=[common_options()], allow_abbrev=False
    )
    module.add_arguments(parser)
    return parser


def outer_parser() -> argparse.ArgumentParser:
    """What stands before the verb, the verb, and the rest as it is."""
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
    """Options that may stand before the verb or after it."""
    options = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    options.add_argument(
        "--config",
        metavar="FILE",
        action="append",
        help="the configuration, and conf.d/*.toml beside it (EDGED_CONFIG; the daemon's; /etc/edged/edged.toml)",
    )
    options.add_argument("--runtime-dir", metavar="DIR", help="where the daemon's socket is (EDGED_RUNTIME_DIR)")
    options.add_argument(
        "--state-dir", metavar="DIR", help="what outlives the daemon (EDGED_STATE_DIR; the daemon's; /var/lib/edged)"
    )
    options.add_argument("--json", action="store_true", help="answer in JSON")
    options.add_argument(
        "--host",
        metavar="[USER@]HOST",
        action="append",
        type=host,
        help="on that device, over SSH; update-model takes several",
    )
    options.add_argument(
        "--ssh", metavar="COMMAND", type=ssh_command, help="how to get there, with options (EDGECTL_SSH; ssh)"
    )
    return options


def host(text: str) -> str:
    """A device, named as for ssh. Raises ArgumentTypeError."""
    user, at, name = text.rpartition("@")
    if not name or text.startswith("-") or name.startswith("-") or (at and not user) or not _one_word(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no [USER@]HOST")
    return text


def ssh_command(text: str) -> str:
    """A command line that a shell would understand. Raises ArgumentTypeError."""
    if text == SSH:
        return text
    import shlex  # which asking the daemon of this device need not wait for

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
    """Begin the answer with the mark where an edgectl elsewhere asks for that; the rest of the command line."""
    if words[:1] != [BEGIN_WITH_MARK]:
        return words
    sys.stdout.buffer.write(MARK)
    sys.stdout.buffer.flush()
    return words[1:]


def _there(args: argparse.Namespace, words: Sequence[str]) -> int:
    """Run the same on the one device that is named."""
    from edged.ctl import remote

    return remote.run(args, words)


def _complain(error: EdgedError) -> None:
    print(f"edgectl: {error.message}", file=sys.stderr)
    for line in error.hint.splitlines():
        print(f"  {line}", file=sys.stderr)


def _no_such_verb(verb: str) -> str:
    from difflib import get_close_matches

    close = get_close_matches(verb, VERBS, n=1)
    advice = f"did you mean {close[0]!r}?" if close else "`edgectl --help` lists them"
    return f"there is no verb {verb!r}: {advice}"
