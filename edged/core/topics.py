"""Names of all MQTT topics of `edged`.

    <prefix>/<device>/availability              "online", "offline" (the last will) or "stopped"     retained
    <prefix>/<device>/state                     the daemon's state                                  retained
    <prefix>/<device>/sources/<name>/state      a state record                                      retained
    <prefix>/<device>/models/<name>/state       a state record                                      retained
    <prefix>/<device>/models/<name>/update      the last step of the last update                    retained
    <prefix>/<device>/models/<name>/accelerator the state of the accelerator                        retained
    <prefix>/<device>/models/<name>/desired     received: address of another version                retained by others
    <prefix>/<device>/pipelines/<name>/state    a state record                                      retained
    <prefix>/<device>/pipelines/<name>/decision the current decision, empty without one                     retained
    <prefix>/<device>/pipelines/<name>/result   a result record, one per prediction             never retained
    <prefix>/<device>/pipelines/<name>/mask     a mask of a segmentation, on request              never retained
    <prefix>/<device>/pipelines/<name>/mask/<outcome>   the same for one of several outcomes       never retained

Only current state is retained: a late subscriber would take a retained result for a new one.
"""

from __future__ import annotations

import msgspec

ONLINE = b"online"
OFFLINE = b"offline"
STOPPED = b"stopped"


class Topics(msgspec.Struct, frozen=True):
    """Topics of one device. `prefix` and the names have been checked by the configuration."""

    prefix: str
    device: str

    @property
    def availability(self) -> str:
        """Return the topic for the availability of the device."""
        return f"{self.prefix}/{self.device}/availability"

    @property
    def state(self) -> str:
        """Return the topic for the state of the daemon."""
        return f"{self.prefix}/{self.device}/state"

    def source_state(self, name: str) -> str:
        """Return the topic for the state of a source."""
        return f"{self.prefix}/{self.device}/sources/{name}/state"

    def model_state(self, name: str) -> str:
        """Return the topic for the state of a model."""
        return f"{self.prefix}/{self.device}/models/{name}/state"

    def model_update(self, name: str) -> str:
        """Return the topic for the steps of a model's update."""
        return f"{self.prefix}/{self.device}/models/{name}/update"

    def model_accelerator(self, name: str) -> str:
        """Return the topic for the state of a model's accelerator."""
        return f"{self.prefix}/{self.device}/models/{name}/accelerator"

    def model_desired(self, name: str) -> str:
        """Return the topic on which other programs request a version of a model; "+" matches all models."""
        return f"{self.prefix}/{self.device}/models/{name}/desired"

    def pipeline_state(self, name: str) -> str:
        """Return the topic for the state of a pipeline."""
        return f"{self.prefix}/{self.device}/pipelines/{name}/state"

    def decision(self, pipeline: str) -> str:
        """Return the topic for the current decision of a pipeline."""
        return f"{self.prefix}/{self.device}/pipelines/{pipeline}/decision"

    def result(self, pipeline: str) -> str:
        """Return the topic for the results of a pipeline."""
        return f"{self.prefix}/{self.device}/pipelines/{pipeline}/result"

    def mask(self, pipeline: str, outcome: str = "") -> str:
        """Return the topic for the masks of a pipeline, or for those of one of several outcomes."""
        return f"{self.prefix}/{self.device}/pipelines/{pipeline}/mask" + (f"/{outcome}" if outcome else "")
