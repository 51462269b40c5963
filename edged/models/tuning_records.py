"""Measurements of the models on this board: tuning/<model>.json in the state folder, each replaced whole.

core/tuning.py defines the content and the consequences.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from edged.core.errors import StoreError
from edged.models.atomic_files import Disk

if TYPE_CHECKING:
    from edged.core.tuning import TuningRecord

log = logging.getLogger("edged.models")


class Tunings:
    """Tuning records in a folder, which may be missing."""

    def __init__(self, folder: Path, disk: Disk | None = None) -> None:
        self._folder = folder
        self._disk = disk or Disk()

    def read(self, model: str) -> TuningRecord | None:
        """Return the record of a model. A damaged record counts as missing, and is logged."""
        file = self._file(model)
        try:
            with file.open("rb") as opened:
                from edged.core.tuning import MAX_RECORD_BYTES, decode  # few models are tuned

                return decode(opened.read(MAX_RECORD_BYTES + 1))
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("%s cannot be read: %s", file, error.strerror, extra={"model": model})
        except StoreError as error:
            log.warning("%s: %s", file, error.message, extra={"model": model})
        return None

    def write(self, record: TuningRecord) -> None:
        """Write a record, in place of the last. Raises StoreError."""
        from edged.core.tuning import encode

        self._disk.make_folder(self._folder)
        self._disk.replace(self._file(record.model), encode(record))

    def _file(self, model: str) -> Path:
        return self._folder / f"{model}.json"
