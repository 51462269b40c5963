"""`edgectl asyncapi`: the document of this configuration."""

import json

from edged.ctl.main import main

CONFIG = """
[device]
name = "kitchen"
[mqtt]
host = "broker.example"
prefix = "plant"
[sources.wrist]
kind = "synthetic"
channels = ["ax", "ay", "az", "gx", "gy", "gz"]
[pipelines.activity]
source = "wrist"
model = "motion"
[pipelines.broken]
source = "wrist"
model = "missing"
"""


def test_the_document_says_what_this_configuration_sends(tmp_path, capsys):
    (tmp_path / "edged.toml").write_text(CONFIG)
    assert main(["asyncapi", "--config", str(tmp_path / "edged.toml")]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["servers"]["broker"]["host"] == "broker.example:1883"
    channels = document["channels"]
    assert channels["source_wrist"]["address"] == "plant/kitchen/sources/wrist/state"
    payloads = {name: channels[f"result_{name}"]["messages"]["message"]["payload"] for name in ("activity", "broken")}
    labels = payloads["activity"]["allOf"][1]["properties"]["label"]["enum"]
    assert sorted(labels) == ["badminton", "running", "standing", "walking"]
    kinds = {each["$ref"].removeprefix("#/components/schemas/") for each in payloads["broken"]["oneOf"]}
    assert kinds > {"ClassificationResult", "RegressionResult", "AnomalyResult", "DetectionResult"}
