"""Installs, rollbacks and their ends, told by what serves and what is remembered."""

import asyncio

import pytest

from tests.updating import NAME, Rig, digest_of, write_container


@pytest.fixture
def rig(tmp_path):
    return Rig(tmp_path)


def run(scenario):
    return asyncio.run(scenario)


def test_a_version_that_proves_itself_serves_and_raises_the_floor(rig):
    async def scenario():
        await rig.boot()
        return await rig.installed("1.1")

    job = run(scenario())
    assert (job.state, job.text) == ("done", "colours: version 1.1 is confirmed; version 1.1 serves")
    assert rig.board.answers == ["1.0", "1.1"]
    assert (rig.ledger.active, rig.ledger.previous, rig.ledger.floor) == (digest_of("1.1"), None, "1.1")
    assert rig.shelf.current() == digest_of("1.1")
    assert [event.id for event in job.events] == [
        "update.verified", "update.unpacked", "update.offered", "update.counted", "update.trying", "update.tried",
        "update.proven", "update.serving", "update.confirmed",
    ]  # fmt: skip
    assert rig.tree() == rig.tidy_tree()
