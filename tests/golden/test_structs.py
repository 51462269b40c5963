"""Keys of the configuration, the manifest and the records, error kinds, exit codes, verbs and metrics: all literal."""

import re
from pathlib import Path

import edged
from edged import plugins
from edged.__main__ import EX_CONFIG
from edged.config.options import Config
from edged.core import protocol, record
from edged.core.detection_spec import ObjectDecision
from edged.core.errors import EdgedError
from edged.core.ledger import Ledger
from edged.core.manifest import Manifest
from edged.ctl import exit_codes
from edged.ctl.main import VERBS, verb_parser
from edged.updates.desired import DesiredVersion
from tests.golden.golden import check
from tests.golden.shapes import keys

PACKAGE = Path(edged.__file__).parent


def test_configuration():
    """The file of a key's origin is not a key."""
    tables = {key: value for key, value in keys(Config).items() if not key.endswith("origins")}
    kinds = {
        f"{family} of kind {kind}": keys(plugins.load(family, kind))
        for family, known in plugins.BUILT_IN.items()
        for kind in known
    }
    check("configuration", {**tables, "in pipelines: decision": keys(ObjectDecision), **kinds})


def test_manifest():
    check("manifest", keys(Manifest))


def test_records():
    """Published and received records, and the ledger on disk."""
    records = {
        **{f"result, {each.__struct_config__.tag}": each for each in record.Result.__subclasses__()},
        **{f"decision, {each.__struct_config__.tag}": each for each in record.DecisionRecord.__subclasses__()},
        "mask": record.MaskRecord,
        "state": record.State,
        "accelerator": record.AcceleratorState,
        "update": record.UpdateStep,
        "desired": DesiredVersion,
        "state.json": Ledger,
    }
    check("records", {name: keys(struct) for name, struct in records.items()})


def test_control_protocol():
    """Lines of the protocol, and the kind of each error."""
    errors = sorted(EdgedError.__subclasses__(), key=lambda each: each.__name__)
    own = [EdgedError, *(each for each in errors if each.__module__ == EdgedError.__module__)]
    lines = {
        "request": protocol.encode_request(protocol.Request(1, "status", {"a": 1})),
        "ok": protocol.encode_ok(1, {"a": 1.5}),
        "event": protocol.encode_event(1, [None]),
        "end": protocol.encode_end(1),
        "not understood": protocol.encode_error(None, EdgedError("message", hint="hint")),
        "retryable": protocol.encode_error(1, EdgedError("message", hint="hint", retryable=True)),
        **{each.__name__: protocol.encode_error(1, each("message")) for each in own},
    }
    limits = {"socket": protocol.SOCKET, "request": protocol.MAX_REQUEST, "reply": protocol.MAX_REPLY}
    mark = [protocol.BEGIN_WITH_MARK, protocol.MARK.decode()]
    check("protocol", {"lines": {name: line.decode() for name, line in lines.items()}, "limits": limits, "mark": mark})


def test_exit_codes():
    """The situations for each code are in test_commands.py."""
    check("exit_codes", {"edged, wrong configuration": EX_CONFIG, "edgectl": sorted(exit_codes.MEANINGS)})


def test_command_line():
    """The verbs of edgectl, with the options and words of each."""
    found = {}
    for verb in VERBS:
        actions = verb_parser(verb)._actions
        found[verb] = [
            " ".join(action.option_strings) or f"{action.dest}{'' if action.nargs is None else f' {action.nargs}'}"
            for action in actions
        ]
    common = set.intersection(*map(set, found.values()))
    own = {verb: [each for each in said if each not in common] for verb, said in found.items()}
    check("command_line", {"(every verb)": sorted(common), **own})


def test_metrics():
    """Every family in the source text, as some are published on boards with an accelerator only."""
    source = "".join(file.read_text() for file in sorted(PACKAGE.rglob("*.py")))
    found = re.findall(r'Family\(\s*"(edged_\w+)",\s*"(\w+)"', source)
    check("metrics", dict(sorted(found)))
