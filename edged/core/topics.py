"""Every MQTT topic name `edged` uses, in one place.

    <prefix>/<device>/availability              "online", "offline" (the last will) or "stopped"     retained
    <prefix>/<device>/state                     the daemon's state                                  retained
    <prefix>/<device>/sources/<name>/state      a state record                                      retained
    <prefix>/<device>/models/<name>/state       a state record                                      retained
    <prefix>/<device>/models/<name>/update      the last step of its last update                    retained
    <prefix>/<device>/models/<name>/accelerator how its accelerator stands                          retained
    <prefix>/<device>/models/<name>/desired     heard: where to look for another version            retained by others
    <prefix>/<device>/pipelines/<name>/state    a state record                                      retained
    <prefix>/<device>/pipelines/<name>/decision what is decided now, empty while nothing is                 retained
    <prefix>/<device>/pipelines/<name>/result   a result record, one per prediction             never retained

Only what is so now is retained: a retained result would be shown as new to a late subscriber, however old it is.
"""

from __future__ import annotations

import msgspec

ONLINE = b"online"
OFFLINE = b"offline"
STOPPED = b"stopped"


class Topics(msgspec.Struct, frozen=True):
    """The topics of one device. `prefix` and the names are checked where they enter, in the configuration."""

    prefix: str
    device: str

    @property
    def availability(self) -> str:
        """Whether the device is there."""
        return f"{self.prefix}/{self.device}/availability"

    @property
    def state(self) -> str:
        """The daemon's own state."""
        return f"{self.prefix}/{self.device}/state"

    def source_state(self, name: str) -> str:
        """The state of a source."""
        return f"{self.prefix}/{self.device}/sources/{name}/state"

    def model_state(self, name: str) -> str:
        """The state of a model."""
        return f"{self.prefix}/{self.device}/models/{name}/state"

    def model_update(self, name: str) -> str:
        """How the update of a model is going, or went."""
        return f"{self.prefix}/{self.device}/models/{name}/update"

    def model_accelerator(self, name: str) -> str:
        """How the accelerator of a model stands."""
        return f"{self.prefix}/{self.device}/models/{name}/accelerator"

    def model_desired(self, name: str) -> str:
        """Where others say what should serve; "+" is all models."""
        return f"{self.prefix}/{self.device}/models/{name}/desired"

    def pipeline_state(self, name: str) -> str:
        """The state of a pipeline."""
        return f"{self.prefix}/{self.device}/pipelines/{name}/state"

    def decision(self, pipeline: str) -> str:
        """What a pipeline decides now."""
        return f"{self.prefix}/{self.device}/pipelines/{pipeline}/decision"

    def result(self, pipeline: str) -> str:
        """The results of a pipeline."""
        return f"{self.prefix}/{self.device}/pipelines/{pipeline}/result"
