"""Models of this device for verbs without a daemon."""

import argparse
import os

from edged.ctl.local_model import find_model, models_of, without_chatter
from tests.models.test_store import Installer


def arguments(state_dir):
    return argparse.Namespace(state_dir=str(state_dir), config=[str(state_dir / "edged.toml")])


def test_an_installed_version_goes_before_the_factorys(tmp_path):
    installer = Installer(tmp_path, state="state/models")
    installer.write(active=installer.install("1.11"))
    bundle, _ = find_model("colours", arguments(tmp_path / "state"))
    assert bundle.manifest.version == "1.11"


def test_with_nothing_installed_there_are_the_factorys(tmp_path):
    assert set(models_of(arguments(tmp_path / "nowhere")).names()) >= {"motion", "anomaly", "digits"}


def test_what_a_runtime_says_for_information_is_kept_from_the_user(capfd):
    with without_chatter():
        os.write(2, b"INFO: Created a delegate.\nERROR: It has no kernel.\n")
    os.write(2, b"INFO: and so on\n")
    assert capfd.readouterr().err == "ERROR: It has no kernel.\nINFO: and so on\n"
