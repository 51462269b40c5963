"""Feed pictures from files to a model, as the source `images` of the daemon does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edged.api import Chunk, ControlError
from edged.core.errors import PictureError
from edged.core.manifest import Manifest
from edged.core.pictures import PictureForm
from edged.core.source_match import match_source
from edged.pictures.encoded import SUFFIXES
from edged.pictures.pillow import require_pillow
from edged.sources.images import Folder, ImagesSource


def is_pictures(path: Path) -> bool:
    """Return whether a path names a picture, or a folder of pictures."""
    return path.suffix.lower() in SUFFIXES or path.is_dir()


def whole_form(manifest: Manifest) -> PictureForm | None:
    """Return the form of whole pictures for a model; None for a model of other input."""
    spec = manifest.picture_spec
    return None if spec is None else PictureForm(spec)


def picture_chunks(path: Path, manifest: Manifest) -> Iterator[Chunk]:
    """Yield a picture, or the pictures of a folder in the order of their names, one a second.

    Raises:
        EdgedError: the model takes no pictures, Pillow is not installed, or a file cannot be decoded.
    """
    match_source(manifest.window, ImagesSource(path=path).describe(), path.name, manifest.name)
    form = whole_form(manifest)
    assert form is not None, "the model takes pictures"
    require_pillow()
    folder = Folder(path, "name")
    names = folder.names()
    if not names:
        problem = f"there are no pictures in {path}" if path.is_dir() else f"there is no file {path}"
        raise ControlError(problem, hint="check the path")
    for second, name in enumerate(names):
        chunk = folder.picture(name, float(second))
        if chunk is None or chunk.picture is None:
            raise ControlError(f"{folder.path}: {folder.refused}", hint="check the file")
        try:
            chunk.picture.fitted(form)
        except PictureError as error:
            raise ControlError(f"{folder.path / name}: {error.message}", hint="convert the file to PNG") from error
        yield chunk
