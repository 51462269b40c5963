"""Makes model files with labels of one's own in their TFLite metadata."""

import io
import zipfile
from collections.abc import Sequence

from tests.bundles import DATA


def relabelled(labels: Sequence[str]) -> bytes:
    """tests/data/metadata.tflite with these labels."""
    whole = (DATA / "metadata.tflite").read_bytes()
    file = io.BytesIO(whole[: whole.index(b"PK\x03\x04")])
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("labels.txt", "\n".join(labels))
    return file.getvalue()
