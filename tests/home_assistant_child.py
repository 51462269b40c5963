"""The core of the real Home Assistant with the MQTT integration, run by a Python with Home Assistant: see packaging.

Connects to the broker at the given port, and prints each state of an entity as a line of JSON.
"""

import asyncio
import json
import sys
import tempfile
from pathlib import Path
from types import MappingProxyType

from homeassistant import config_entries, core, loader
from homeassistant.helpers import (
    area_registry,
    category_registry,
    device_registry,
    entity,
    entity_registry,
    floor_registry,
    frame,
    issue_registry,
    label_registry,
    restore_state,
    template,
    translation,
)

REGISTRIES = (
    area_registry,
    category_registry,
    device_registry,
    entity_registry,
    floor_registry,
    issue_registry,
    label_registry,
)


@core.callback
def report(event: core.Event) -> None:
    new = event.data["new_state"]
    print(json.dumps([event.data["entity_id"], new and new.state]), flush=True)


async def main(port: int, folder: Path) -> None:
    (folder / "configuration.yaml").touch()
    hass = core.HomeAssistant(str(folder))
    hass.config.skip_pip = True
    loader.async_setup(hass)
    hass.config_entries = config_entries.ConfigEntries(hass, {})
    await hass.config_entries.async_initialize()
    for module in (entity, frame, template, translation):
        module.async_setup(hass)
    for registry in REGISTRIES:
        await registry.async_load(hass)
    await restore_state.async_load(hass)
    hass.config.components.update({"http", "file_upload"})  # components for pages, unused here
    hass.bus.async_listen("state_changed", report)
    mqtt = config_entries.ConfigEntry(
        domain="mqtt",
        data={"broker": "127.0.0.1", "port": port},
        options={},
        version=1,
        minor_version=2,
        title="broker",
        source="user",
        unique_id=None,
        discovery_keys=MappingProxyType({}),
        subentries_data=None,
    )
    await hass.config_entries.async_add(mqtt)
    await hass.async_start()
    print(json.dumps(["mqtt", mqtt.state.value]), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(int(sys.argv[1]), Path(folder)))
