"""A state folder written by edged 0.1, which later versions must read: state_of_0.1 is never written anew.

The folder holds two installed versions of the motion model, with 1.2.0 rolled back; half of the transfer of 1.3.0; 47
results waiting for the broker; and records of proofs, measurements and announcements.
"""

import json
import shutil
from pathlib import Path

from tests.broker import Broker, Subscriber
from tests.edged_process import Edged
from tests.golden.golden import FOLDER
from tests.motion import config, edgectl

BOOT = "9f6b5664a958"
WAITED = {"amounts": 40, "motion": 7}
"""Waiting results by pipeline, of an earlier run of the daemon."""

HALF_SENT = {
    "id": "58f422087a3c46bdb0201f68f2877e1a784ef5e8860dff37c1fdfbfa24f9b81c",
    "digest": "84e38b5a80018e5932b768deba48df4f570eaa5bde5fcd3fe62b357a1bc169c9",
    "size": 17909,
}


def test_a_state_folder_of_0_1_is_read(tmp_path: Path):
    shutil.copytree(FOLDER / "state_of_0.1", tmp_path / "state", symlinks=True)
    with Broker(tmp_path) as broker:
        mqtt = f'[mqtt]\nhost = "127.0.0.1"\nport = {broker.port}\n'
        results = Subscriber(broker.port, "edged/board/pipelines/+/result")
        with results as subscriber, Edged(tmp_path, config() + mqtt) as daemon:
            waited = set()
            while len(waited) < sum(WAITED.values()):
                result = json.loads(subscriber.next().payload)
                if result["boot"] == BOOT:
                    assert result["replayed"]
                    waited.add(result["id"])
            daemon.wait_for_log(" serves: ")
            (motion,) = daemon.call("models")
            half = daemon.call("receive-open", name="motion", number="1.3.0", base=None, **HALF_SENT)
            again = edgectl(daemon, "rollback", "motion", "--to", "1.2.0").code
            assert daemon.stop() == 0
    assert waited == {f"{BOOT}:{name}:{seq}" for name, count in WAITED.items() for seq in range(count)}
    assert motion["version"] == "1.1.0"
    assert [(each["version"], each["roles"]) for each in motion["versions"]] == [
        ("1.2.0", ["rejected"]),
        ("1.1.0", ["serves"]),
        ("1.0.0", ["factory"]),
    ]
    assert half == {"offset": 8954}
    assert again == 0
    announced = json.loads((tmp_path / "state" / "announced.json").read_bytes())
    before = json.loads((FOLDER / "state_of_0.1" / "announced.json").read_bytes())
    assert announced["client"] == before["client"]
    assert announced["boots"][:2] == before["boots"]
