import pytest

from edged.core.errors import BundleError, ConfigError
from edged.models.store import Store
from tests.bundles import write_bundle


@pytest.fixture
def store(tmp_path):
    for version in ("1.9", "1.10", "1.2"):
        write_bundle(tmp_path / "colours" / version, version=version)
    write_bundle(tmp_path / "shapes" / "1", name="shapes", version="1")
    (tmp_path / "empty").mkdir()
    (tmp_path / "colours" / "notes").mkdir()
    (tmp_path / "README.md").write_text("models")
    return Store(tmp_path)


def test_it_knows_its_models_and_their_versions(store):
    assert store.names() == ("colours", "shapes")
    assert store.versions("colours") == ("1.2", "1.9", "1.10")
    assert store.versions("sounds") == ()


def test_it_finds_the_newest_version(store):
    assert store.find("colours").manifest.version == "1.10"


@pytest.mark.parametrize("version", ["1.2", "1.2.0"])
def test_it_finds_the_version_asked_for(store, version):
    assert store.find("colours", version).manifest.version == "1.2"


def test_a_model_that_is_not_there_is_answered_with_what_is(store):
    with pytest.raises(ConfigError, match=r"no model 'colour' .*\(did you mean 'colours'\? there is colours, shapes\)"):
        store.find("colour")


@pytest.mark.parametrize("version", ["2", "1.10-beta", ""])
def test_a_version_that_is_not_there_is_answered_with_those_that_are(store, version):
    with pytest.raises(ConfigError, match=r"'colours' has no version .*\(there is 1\.2, 1\.9, 1\.10\)"):
        store.find("colours", version)


@pytest.mark.parametrize("name", ["../colours", "/", "", "."])
def test_a_name_leads_nowhere_else(store, name):
    with pytest.raises(ConfigError, match="there is no model"):
        store.find(name)


def test_a_folder_that_holds_something_else_is_refused(store, tmp_path):
    (tmp_path / "shapes" / "1").rename(tmp_path / "shapes" / "2")
    with pytest.raises(BundleError, match=r"shapes/2 holds shapes 1"):
        store.find("shapes")


def test_a_folder_that_is_not_there_has_no_models(tmp_path):
    assert Store(tmp_path / "nowhere").names() == ()


def test_it_sees_what_has_come_since(store, tmp_path):
    write_bundle(tmp_path / "colours" / "2", version="2")
    assert store.find("colours").manifest.version == "2"
