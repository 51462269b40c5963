import tempfile
from pathlib import Path

import pytest
from msgspec.structs import replace

from edged.core.errors import BundleError, ConfigError, StoreError
from edged.core.ledger import EMPTY, Candidate, Installed
from edged.models.atomic_files import Disk
from edged.models.bundle import digest, open_folder
from edged.models.store import Store, open_path
from tests.bundles import DATA, write_bundle
from tests.containers import MODEL, colours, container, entry


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


# Installed versions


class Installer:
    """Installer of versions into a folder and its ledger."""

    def __init__(self, folder, state="state"):
        self.factory, self.state = folder / "factory", folder / state
        self.store = Store(self.factory, self.state)
        self.ledger = EMPTY

    def install(self, version, *, confirmed=True, name="colours"):
        arriving = write_bundle(self.state / name / "arriving", version=version, name=name)
        found = digest(arriving)
        shelf = self.store.model(name)
        shelf.versions.mkdir(exist_ok=True)
        arriving.rename(shelf.version(found))
        installed = Installed(version=version, confirmed=confirmed)
        self.write(versions={**self.ledger.versions, found: installed}, name=name)
        return found

    def write(self, name="colours", **changes):
        self.ledger = replace(self.ledger, **changes)
        self.store.model(name).write(self.ledger, Disk())


@pytest.fixture
def installer(tmp_path):
    for version in ("1.9", "1.10", "1.2"):
        write_bundle(tmp_path / "factory" / "colours" / version, version=version)
    write_bundle(tmp_path / "factory" / "shapes" / "1", name="shapes", version="1")
    return Installer(tmp_path)


def test_it_finds_the_active_version_first(installer):
    older, newer = installer.install("1.11"), installer.install("1.12")
    installer.write(active=older, previous=newer)
    assert installer.store.find("colours").manifest.version == "1.11"
    assert installer.store.versions("colours") == ("1.2", "1.9", "1.10", "1.11", "1.12")
    assert installer.store.find("colours", "1.12").manifest.version == "1.12"
    assert installer.store.find("colours", "1.2").manifest.version == "1.2"


def test_a_damaged_version_gives_way_to_the_next_best(installer):
    previous, active = installer.install("1.11"), installer.install("1.12")
    installer.write(active=active, previous=previous)
    served = []
    for folder in (installer.store.model("colours").version(active), installer.store.model("colours").version(previous),
                   installer.factory / "colours" / "1.10"):  # fmt: skip
        (folder / "model.tflite").write_bytes(b"rotten")
        served.append(installer.store.find("colours").manifest.version)
    assert served == ["1.11", "1.10", "1.9"]


def test_another_bundle_in_the_place_of_a_version_is_refused(installer):
    active = installer.install("1.11")
    installer.write(active=active)
    write_bundle(installer.store.model("colours").version(active), version="1.12")
    assert installer.store.find("colours").manifest.version == "1.10"


def test_a_candidate_is_not_found(installer):
    candidate = installer.install("1.11", confirmed=False)
    installer.write(candidate=Candidate(digest=candidate, phase="probation"))
    assert installer.store.find("colours").manifest.version == "1.10"
    assert "1.11" not in installer.store.versions("colours")


def test_a_model_need_not_be_the_factorys(installer):
    active = installer.install("3", name="sounds")
    installer.write(active=active, name="sounds")
    assert installer.store.names() == ("colours", "shapes", "sounds")
    assert installer.store.installed() == ("sounds",)
    assert installer.store.find("sounds").manifest.version == "3"


def test_a_shelf_shows_what_is_on_it(installer):
    active = installer.install("1.11")
    shelf = installer.store.model("colours")
    (shelf.versions / "notes").mkdir()
    shelf.arriving.mkdir()
    (shelf.folder / "state.json.aside").touch()
    (shelf.folder / "notes.txt").touch()
    shelf.link.symlink_to(f"versions/{active}")
    assert shelf.present() == {active: sum(file.stat().st_size for file in shelf.version(active).iterdir())}
    assert shelf.litter() == ("arriving", "state.json.aside")
    assert shelf.current() == active
    assert shelf.read() == installer.ledger


def test_an_empty_shelf_shows_nothing(installer):
    shelf = installer.store.model("colours")
    assert (shelf.read(), shelf.present(), shelf.litter(), shelf.current()) == (EMPTY, {}, (), None)


def test_a_state_folder_that_is_none_leaves_the_factorys(installer):
    installer.state.write_text("in the way")
    assert installer.store.find("colours").manifest.version == "1.10"
    assert installer.store.versions("colours") == ("1.2", "1.9", "1.10")


# With models at paths


@pytest.fixture
def given(tmp_path):
    """Return a store with `colours` at a path, and a function that makes a container there."""
    write_bundle(tmp_path / "factory" / "colours" / "1.9", version="1.9")

    def make(version):
        described = colours(version=version, files={"model.tflite": entry(MODEL)})
        (tmp_path / "mine.edgm").write_bytes(container(described, body=MODEL))

    make("0.5")
    paths = {"colours": tmp_path / "mine.edgm"}
    return Store(tmp_path / "factory", tmp_path / "state", paths=paths, unpacked=tmp_path / "unpacked"), make


def test_what_is_at_a_path_takes_the_place_of_what_came_with_edged(given, tmp_path):
    store, _ = given
    assert store.versions("colours") == ("0.5",)
    found = store.find("colours")
    assert (found.manifest.version, found.folder) == ("0.5", tmp_path / "unpacked" / found.digest)
    assert list(store.factory("colours")) == [found.digest]
    assert store.having({}).find("colours").manifest.version == "1.9"


def test_what_was_installed_serves_over_what_is_at_a_path(given, tmp_path):
    store, _ = given
    installer = Installer(tmp_path)
    installer.write(active=installer.install("0.4"))
    assert store.find("colours").manifest.version == "0.4"
    assert store.versions("colours") == ("0.4", "0.5")


def test_what_was_unpacked_is_mended_and_goes_when_no_path_leads_to_it(given, tmp_path):
    store, make = given
    first = store.find("colours")
    (first.folder / "model.tflite").write_bytes(b"rotten")
    assert store.open("colours", first.digest).folder == first.folder
    make("0.6")
    second = store.find("colours")
    with pytest.raises(BundleError, match="is missing"):
        store.open("colours", first.digest)
    store.tidy(Disk())
    assert [folder.name for folder in (tmp_path / "unpacked").iterdir()] == [second.digest]


@pytest.mark.parametrize(
    ("content", "why"), [(None, "No such file or directory"), (b"edgm", "mine.edgm: the container breaks off")]
)
def test_a_path_that_leads_to_no_model_is_told(given, tmp_path, content, why):
    store, _ = given
    (tmp_path / "mine.edgm").unlink()
    if content is not None:
        (tmp_path / "mine.edgm").write_bytes(content)
    with pytest.raises((BundleError, StoreError), match=why):
        store.find("colours")


@pytest.mark.parametrize("name", ["MINE.TFLITE", "mine.lite", "mine"])
def test_a_file_that_is_no_model_by_its_name_is_told_so(tmp_path, name):
    (tmp_path / name).write_bytes(MODEL)
    with pytest.raises(BundleError, match=r"the name ends in neither .tflite nor .edgm \(name a bundle's folder"):
        Store(DATA, paths={"mine": tmp_path / name}).find("mine")


def test_a_folder_without_a_manifest_is_told_what_is_missing(tmp_path):
    (tmp_path / "model.tflite").write_bytes(MODEL)
    with pytest.raises(BundleError, match=r"there is no manifest.json in this folder \(name a bundle's folder"):
        Store(DATA, paths={"mine": tmp_path}).find("mine")


def test_a_bare_file_at_a_path_goes_by_the_name_it_is_given():
    store = Store(DATA, paths={"mine": DATA / "metadata.tflite"})
    bundle = store.find("mine")
    assert (bundle.manifest.name, bundle.model) == ("mine", DATA / "metadata.tflite")
    assert list(store.factory("mine")) == [bundle.digest]


@pytest.mark.parametrize("kind", ["a bare file", "a folder"])
def test_what_is_at_a_path_is_copied_so_that_nobody_writes_to_what_serves(tmp_path, kind):
    if kind == "a folder":
        path = write_bundle(tmp_path / "mine")
        file = path / "model.tflite"
    else:
        path = file = tmp_path / "mine.tflite"
        file.write_bytes((DATA / "metadata.tflite").read_bytes())
    store = Store(tmp_path / "factory", paths={"colours": path}, unpacked=tmp_path / "unpacked")
    found = store.find("colours")
    assert found.folder == tmp_path / "unpacked" / found.digest
    assert found.digest == open_path(path, "colours").digest
    assert found.model.read_bytes() == file.read_bytes()
    file.write_bytes(b"")
    assert open_folder(found.folder).digest == found.digest
    with pytest.raises(BundleError):
        store.find("colours")


def test_where_nothing_can_be_copied_a_path_is_used_as_it_is(tmp_path, caplog):
    (tmp_path / "unpacked").write_text("in the way")
    path = write_bundle(tmp_path / "mine")
    store = Store(tmp_path / "factory", paths={"colours": path}, unpacked=tmp_path / "unpacked")
    assert store.find("colours").folder == path
    assert "must not be written to in service" in caplog.text


def test_where_nothing_can_be_unpacked_a_container_serves_from_a_temporary_folder(given, tmp_path, caplog):
    (tmp_path / "unpacked").write_text("a file in the way")
    assert given[0].find("colours").folder.parent.parent == Path(tempfile.gettempdir())
    assert "mine.edgm is unpacked into a temporary folder, for this run" in caplog.text


def test_without_a_folder_of_its_own_a_container_is_unpacked_for_this_process_alone(given):
    folder = open_path(given[0].paths["colours"]).folder
    assert folder.parent.parent == Path(tempfile.gettempdir())
