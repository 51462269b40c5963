"""A subscriber with little code, so that the subscriber adds little to a measurement.

`python -m benchmarks.listener PORT TOPIC` prints "ready" after the subscription. After the end of standard input the
listener waits for a first message and for a pause, and prints every message: a JSON list of
[CLOCK_MONOTONIC seconds, payload]. The listener speaks a part of MQTT 3.1.1, at QoS 0.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time

QUIET_SECONDS = 0.5
LIMIT_SECONDS = 20.0

PUBLISH, SUBACK = 3, 9


def main() -> None:
    """Subscribe, listen, and print."""
    port, topic = int(sys.argv[1]), sys.argv[2].encode()
    broker = socket.create_connection(("127.0.0.1", port))
    broker.sendall(b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x00\x00\x00")
    broker.sendall(bytes([0x82, len(topic) + 5, 0, 1, 0, len(topic)]) + topic + b"\x00")
    heard: list[tuple[float, str]] = []
    buffer = b""
    arrival = select.poll()
    arrival.register(broker, select.POLLIN)
    arrival.register(sys.stdin, select.POLLIN)
    limit = float("inf")
    while time.monotonic() < limit:
        ready = {descriptor for descriptor, _ in arrival.poll(QUIET_SECONDS * 1000)}
        if sys.stdin.fileno() in ready:
            arrival.unregister(sys.stdin)
            limit = time.monotonic() + LIMIT_SECONDS
        if broker.fileno() in ready:
            buffer += broker.recv(65536)
            now = time.monotonic()
            packets, buffer = _split(buffer)
            heard += [(now, _payload(body)) for kind, body in packets if kind == PUBLISH]
            if any(kind == SUBACK for kind, _ in packets):
                print("ready", flush=True)
        if not ready and heard and limit < float("inf"):
            break
    json.dump(heard, sys.stdout)


def _payload(body: bytes) -> str:
    return body[2 + int.from_bytes(body[:2], "big") :].decode()


def _split(buffer: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """Return the complete packets in the buffer as (type, body), and the rest of the buffer."""
    packets = []
    while len(buffer) >= 2:
        length, shift, at = 0, 0, 1
        while at < len(buffer):
            length |= (buffer[at] & 127) << shift
            shift += 7
            at += 1
            if not buffer[at - 1] & 128:
                break
        else:
            break
        if len(buffer) < at + length:
            break
        packets.append((buffer[0] >> 4, buffer[at : at + length]))
        buffer = buffer[at + length :]
    return packets, buffer


if __name__ == "__main__":
    main()
