"""Connections to the broker with as much of MQTT as the broker accepts."""

from __future__ import annotations

from collections.abc import Callable

from paho.mqtt.enums import MQTTProtocolVersion

from edged.outbox import faults
from edged.outbox.client import V5, V311
from edged.outbox.faults import CapabilityError, VersionError
from edged.outbox.link import Link
from edged.outbox.network import Network
from edged.outbox.options import MqttOptions
from edged.outbox.wake import Wake


class Connector:
    """Opens links. After a broker has explicitly refused MQTT 5, the connector uses 3.1.1 only."""

    def __init__(
        self,
        options: MqttOptions,
        *,
        client_id: str,
        will: str,
        wake: Wake,
        network: Network,
        clock: Callable[[], float],
    ) -> None:
        self._options = options
        self._client_id = client_id
        self._will = will
        self._wake = wake
        self._network = network
        self._clock = clock
        self._versions = {"auto": (V5, V311), "5": (V5,), "3.1.1": (V311,)}[options.protocol]

    def connect(self) -> Link:
        """Connect with the newest version of MQTT known to both sides. Raises LinkError."""
        first, *older = self._versions
        try:
            return self._open(first)
        except VersionError as error:
            if not older:
                raise
            if error.certain:
                self._versions = tuple(older)
        return self._open(older[0])

    def _open(self, version: MQTTProtocolVersion) -> Link:
        """Connect with the best last will accepted by the broker: some brokers refuse a retained will, or QoS 1 for
        it.
        """
        retain, qos = True, 1
        while True:
            try:
                return Link(
                    self._options,
                    version=version,
                    client_id=self._client_id,
                    will=self._will,
                    wake=self._wake,
                    network=self._network,
                    clock=self._clock,
                    retain=retain,
                    qos=qos,
                )
            except CapabilityError as error:
                if error.code == faults.RETAIN_NOT_SUPPORTED and retain:
                    retain = False
                elif error.code == faults.QOS_NOT_SUPPORTED and qos:
                    qos = 0
                else:
                    raise
