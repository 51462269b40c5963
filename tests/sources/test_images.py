"""Pictures from a folder: files are taken whole, in order, and no faster than stated."""

import os
from io import BytesIO
from pathlib import Path
from threading import Event, Thread

import pytest
from PIL import Image

from edged.api import ConfigError, DeviceError, SourceInfo
from edged.core.source_health import DROPPED
from edged.sources.images import REST_SECONDS, Album, Folder, ImagesSource, Inbox
from edged.testing.source_contract import PictureSourceContract, chunks


def jpeg(brightness: int = 0) -> bytes:
    file = BytesIO()
    Image.new("RGB", (64, 48), (brightness % 256,) * 3).save(file, "JPEG")
    return file.getvalue()


def put(folder, name, brightness=0):
    """Rename a whole picture into the folder."""
    aside = folder / f".{name}"
    aside.write_bytes(jpeg(brightness))
    aside.rename(folder / name)


def taken(source, count):
    """Return the bytes of the next pictures."""
    return [chunk.samples.tobytes() for chunk in chunks(source, count)]


class TestPlayedContract(PictureSourceContract):
    @pytest.fixture
    def config(self, tmp_path):
        for number in range(4):
            put(tmp_path, f"{number}.jpg", number)
        return ImagesSource(path=tmp_path, play="repeat", rate=200.0)


class TestInboxContract(PictureSourceContract):
    @pytest.fixture
    def config(self, tmp_path):
        """A camera program overwrites one of ten files, again and again."""
        stop = Event()

        def write():
            number = 0
            while not stop.wait(0.005):
                put(tmp_path, f"{number % 10}.jpg", number)
                number += 1

        camera = Thread(target=write)
        camera.start()
        yield ImagesSource(path=tmp_path)
        stop.set()
        camera.join()


def test_the_description_follows_from_the_options(tmp_path):
    def described(**options):
        return ImagesSource(path=tmp_path, **options).describe()

    assert described() == SourceInfo(shape=(), pictures=True, patient=True, eventful=True)
    assert described(rate=2.0) == SourceInfo(shape=(), pictures=True, eventful=True)
    assert described(play="once") == SourceInfo(shape=(), pictures=True, patient=True)
    assert described(play="repeat", rate=2.0) == SourceInfo(shape=(), pictures=True, rate=2.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"play": "once", "delete": True}, 'delete means nothing with play = "once"'),
        ({"path": Path("/srv/*/x.jpg")}, "names several folders"),
    ],
)
def test_options_that_contradict_each_other_are_refused(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        ImagesSource(**{"path": tmp_path, **options}).describe()
    assert caught.value.hint


@pytest.fixture
def inbox(tmp_path, request):
    opened = ImagesSource(path=tmp_path, **getattr(request, "param", {})).open()
    yield opened
    opened.close()


def test_a_file_renamed_into_the_folder_is_taken_at_once(tmp_path, inbox):
    put(tmp_path, "a.jpg", 1)
    assert taken(inbox, 1) == [jpeg(1)]
    assert inbox.read(0.0) is None


def test_a_file_written_in_place_is_taken_when_closed(tmp_path, inbox):
    with (tmp_path / "a.jpg").open("wb") as file:
        file.write(jpeg(1)[:100])
        file.flush()
        assert inbox.read(0.0) is None
        file.write(jpeg(1)[100:])
    assert taken(inbox, 1) == [jpeg(1)]


def test_a_file_written_over_is_another_picture(tmp_path, inbox):
    (tmp_path / "snapshot.jpg").write_bytes(jpeg(1))
    assert taken(inbox, 1) == [jpeg(1)]
    (tmp_path / "snapshot.jpg").write_bytes(jpeg(2))
    assert taken(inbox, 1) == [jpeg(2)]


def test_a_file_closed_again_without_a_change_is_not_taken_again(tmp_path, inbox):
    (tmp_path / "a.jpg").write_bytes(jpeg(1))
    assert taken(inbox, 1) == [jpeg(1)]
    os.close(os.open(tmp_path / "a.jpg", os.O_WRONLY))
    assert inbox.read(0.0) is None


def test_pictures_of_before_are_left_alone(tmp_path):
    put(tmp_path, "old.jpg", 1)
    inbox = ImagesSource(path=tmp_path).open()
    put(tmp_path, "new.jpg", 2)
    assert taken(inbox, 1) == [jpeg(2)]
    assert inbox.read(0.0) is None
    inbox.close()


@pytest.mark.parametrize("inbox", [{}], indirect=True)
@pytest.mark.parametrize("name", [".hidden.jpg", "notes.txt", "picture.jpg.part"])
def test_other_files_are_passed_over(tmp_path, inbox, name):
    (tmp_path / name).write_bytes(jpeg())
    assert inbox.read(0.0) is None
    assert inbox.faults == {}


@pytest.mark.parametrize(
    ("pattern", "taken_names"),
    [("*.jpg", ["a.jpg", "b.jpg"]), ("a.*", ["a.jpg", "a.raw"]), ("b.jpg", ["b.jpg"]), ("?.png", [])],
)
def test_a_pattern_chooses_files(tmp_path, pattern, taken_names):
    names = ["a.jpg", "a.raw", "b.jpg", ".a.jpg"]
    for name in names:
        (tmp_path / name).touch()
    assert Folder(tmp_path / pattern, "name").names() == taken_names


class Clock:
    now = 100.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def test_with_a_rate_the_newest_is_taken_and_the_others_are_counted(tmp_path):
    clock = Clock()
    inbox = Inbox(Folder(tmp_path, "name"), 0.5, delete=False, clock=clock)
    put(tmp_path, "0.jpg", 0)
    assert inbox.read(0.0).samples.tobytes() == jpeg(0)
    for number in range(1, 5):
        put(tmp_path, f"{number}.jpg", number)
        clock.now += 0.25
        assert inbox.read(0.0) is None
    clock.now += 1.0
    assert inbox.read(0.0).samples.tobytes() == jpeg(4)
    assert inbox.faults == {DROPPED: 3}
    inbox.close()


def test_taken_files_are_deleted_once_the_pipelines_have_them(tmp_path):
    inbox = ImagesSource(path=tmp_path, delete=True).open()
    put(tmp_path, "a.jpg", 1)
    assert taken(inbox, 1) == [jpeg(1)]
    assert (tmp_path / "a.jpg").exists()
    assert inbox.read(0.0) is None
    assert not (tmp_path / "a.jpg").exists()
    inbox.close()


@pytest.mark.parametrize("rate", [None, 0.01])
def test_folders_and_unreadable_files_are_neither_deleted_nor_waited_for(tmp_path, rate):
    inbox = ImagesSource(path=tmp_path, delete=True, rate=rate).open()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "aside").mkdir()
        (tmp_path / "aside").rename(tmp_path / name)
    assert inbox.read(0.0) is None
    os.mkfifo(tmp_path / "aside")
    (tmp_path / "aside").rename(tmp_path / "c.jpg")
    assert inbox.read(0.0) is None
    put(tmp_path, "d.jpg", 1)
    assert taken(inbox, 1) == [jpeg(1)]
    assert inbox.read(0.0) is None
    assert {file.name for file in tmp_path.iterdir()} == {"a.jpg", "b.jpg", "c.jpg"}
    assert inbox.faults["unreadable files"] >= 2
    inbox.close()


def test_a_newer_file_of_the_same_name_is_not_deleted(tmp_path):
    inbox = ImagesSource(path=tmp_path, delete=True).open()
    put(tmp_path, "a.jpg", 1)
    assert taken(inbox, 1) == [jpeg(1)]
    put(tmp_path, "a.jpg", 2)
    assert taken(inbox, 1) == [jpeg(2)]
    inbox.close()


def test_with_delete_the_files_of_before_are_taken_once_they_rest(tmp_path):
    clock = Clock()
    for name in ("b.jpg", "a.jpg"):
        put(tmp_path, name, ord(name[0]))
    with (tmp_path / "c.jpg").open("wb") as unfinished:
        inbox = Inbox(Folder(tmp_path, "name"), None, delete=True, clock=clock)
        assert inbox.read(0.0) is None
        unfinished.write(jpeg(3))
        unfinished.flush()
        clock.now += REST_SECONDS
        assert taken(inbox, 2) == [jpeg(ord("a")), jpeg(ord("b"))]
        assert inbox.read(0.0) is None
    assert taken(inbox, 1) == [jpeg(3)]
    inbox.close()


def test_a_file_that_is_gone_or_no_file_is_a_fault(tmp_path, inbox):
    put(tmp_path, "a.jpg")
    (tmp_path / "a.jpg").unlink()
    (tmp_path.parent / f"{tmp_path.name}-folder").mkdir()
    (tmp_path.parent / f"{tmp_path.name}-folder").rename(tmp_path / "b.jpg")
    os.mkfifo(tmp_path / ".fifo")
    (tmp_path / ".fifo").rename(tmp_path / "c.jpg")
    assert inbox.read(0.0) is None
    assert inbox.faults == {"unreadable files": 3}
    assert inbox.refused == "c.jpg: no regular file"


def test_a_folder_that_goes_away_is_an_error(tmp_path):
    folder = tmp_path / "yard"
    folder.mkdir()
    inbox = ImagesSource(path=folder).open()
    folder.rename(tmp_path / "moved")
    with pytest.raises(DeviceError, match=r"the folder .*yard cannot be read: the folder has been deleted or moved"):
        inbox.read(0.0)
    inbox.close()


@pytest.mark.parametrize("options", [{}, {"delete": True}])
def test_a_missing_folder_is_an_error_with_a_remedy(tmp_path, options):
    with pytest.raises(DeviceError, match=r"the folder .*yard cannot be read: No such file") as caught:
        ImagesSource(path=tmp_path / "yard", **options).open()
    assert caught.value.hint == "make the folder, and let the daemon's user read it"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may do anything")
def test_a_folder_that_cannot_be_written_to_refuses_delete(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(DeviceError, match="cannot be deleted") as caught:
        ImagesSource(path=tmp_path, delete=True).open()
    assert "ReadWritePaths=" in caught.value.hint


@pytest.mark.parametrize(("order", "expected"), [("name", [1, 2, 3]), ("time", [3, 1, 2])])
def test_present_pictures_are_played_in_order_and_end(tmp_path, order, expected):
    for number, changed in ((2, 300), (3, 100), (1, 200)):
        put(tmp_path, f"{number}.jpg", number)
        os.utime(tmp_path / f"{number}.jpg", (changed, changed))
    album = ImagesSource(path=tmp_path, play="once", order=order).open()
    assert taken(album, 3) == [jpeg(number) for number in expected]
    with pytest.raises(EOFError):
        album.read(0.0)


def test_a_repeated_round_is_a_stream_of_its_own_and_finds_new_files(tmp_path):
    put(tmp_path, "a.jpg", 1)
    album = ImagesSource(path=tmp_path, play="repeat").open()
    first = album.read(0.0)
    put(tmp_path, "b.jpg", 2)
    again, other, third = album.read(0.0), album.read(0.0), album.read(0.0)
    assert [chunk.anew for chunk in (first, again, other, third)] == [False, True, False, True]
    assert other.samples.tobytes() == jpeg(2)


def test_pictures_are_played_at_their_rate(tmp_path):
    clock = Clock()
    put(tmp_path, "a.jpg")
    album = Album(Folder(tmp_path, "name"), 4.0, repeat=True, clock=clock, sleep=clock.sleep)
    assert [album.read(1.0).time for _ in range(4)] == [100.0, 100.25, 100.5, 100.75]
    assert album.read(0.1) is None
    assert clock.now == pytest.approx(100.85)


def test_a_folder_without_pictures_cannot_be_played(tmp_path):
    album = ImagesSource(path=tmp_path, play="repeat").open()
    with pytest.raises(DeviceError, match="holds no pictures"):
        album.read(0.0)


def test_a_read_waits_for_a_picture(tmp_path, inbox):
    late = Thread(target=put, args=(tmp_path, "a.jpg", 1))
    late.start()
    assert inbox.read(60.0).samples.tobytes() == jpeg(1)
    late.join()
