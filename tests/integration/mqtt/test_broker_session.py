"""guestd's session at a real broker: under which id it connects, what an upgrade keeps, and what is found missing."""

import asyncio
import json
import re
import stat
import time
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from tools.harness.broker import DEPLOY, Broker, prefix

from guestd.core.errors import ConfigError
from guestd.mqtt.session_file import FILE, make_public_name, open_session_file
from support.broker import PASSWORDS, started
from support.sessions import FREE_IDS, TOPIC, Guestd, free_broker, leave_session, mqtt_settings, publish

DAY_SECONDS = 24 * 3600
RANDOM_ID = re.compile(r"guestd-[0-9a-f]{32}")
FORMER_ID = make_public_name()


def guestd_of(broker: Broker, directory: Path, **changes: Any) -> Guestd:
    return Guestd(mqtt_settings(broker, **changes), directory)


@pytest.mark.asyncio
async def test_a_broker_that_names_sessions_by_the_user_is_recognised(broker: Broker, directory: Path) -> None:
    guestd = guestd_of(broker, directory)
    for _ in range(2):
        async with guestd.start().connected() as session:
            assert session.file.session is not None
            assert (session.file.session.client_id, session.file.session.name) == ("", "guestd")
            assert session.count("sessions_lost") == 0
    publish(broker, 20)
    async with guestd.start().connected() as session:
        await session.receive(20)


@pytest.mark.asyncio
async def test_where_clients_choose_their_id_guestd_has_one_that_cannot_be_guessed(directory: Path) -> None:
    ids = set()
    with free_broker(directory) as broker:
        guestd = guestd_of(broker, directory)
        for _ in range(2):
            async with guestd.start().connected() as session:
                ids.add(session.file.client_id)
                assert session.count("sessions_lost") == 0
        publish(broker, 20)
        async with guestd.start().connected() as session:
            await session.receive(20)
    (only,) = ids
    assert RANDOM_ID.fullmatch(only)
    assert stat.S_IMODE((directory / FILE).stat().st_mode) == 0o600


@pytest.mark.asyncio
async def test_an_upgraded_guestd_receives_what_is_queued_under_its_former_id(directory: Path) -> None:
    with free_broker(directory) as broker:
        leave_session(broker, FORMER_ID, TOPIC)
        publish(broker, 50)
        guestd = guestd_of(broker, directory)
        with capture_logs() as logs:
            async with guestd.start(is_upgrade=True).connected() as session:
                await session.receive(50)
        assert [each["client_id"] for each in logs if "can be guessed" in each["event"]] == [FORMER_ID]
        publish(broker, 10)
        async with guestd.start(is_upgrade=True).connected() as session:
            await session.receive(10)
            assert session.count("sessions_lost") == 0


@pytest.mark.asyncio
async def test_an_upgraded_guestd_without_a_session_takes_an_id_that_cannot_be_guessed(directory: Path) -> None:
    with free_broker(directory) as broker:
        async with guestd_of(broker, directory).start(is_upgrade=True).connected() as session:
            assert RANDOM_ID.fullmatch(session.file.client_id)
            assert session.count("sessions_lost") == 0


@pytest.mark.asyncio
async def test_a_new_guestd_does_not_enter_a_session_that_somebody_has_left_under_the_former_id(
    directory: Path,
) -> None:
    with free_broker(directory) as broker:
        leave_session(broker, FORMER_ID)
        async with guestd_of(broker, directory).start().connected() as session:
            assert RANDOM_ID.fullmatch(session.file.client_id)


@pytest.mark.asyncio
async def test_a_broker_that_begins_to_name_sessions_by_the_user_loses_nothing_if_the_user_has_the_name_of_the_id(
    directory: Path,
) -> None:
    acl, shipped = directory / "acl", (DEPLOY / "acl").read_text()
    acl.write_text(shipped.replace("user guestd\n", f"user {FORMER_ID}\n"))
    acl.chmod(0o600)
    broker = Broker(directory / "broker", prefix=prefix(), overrides=[FREE_IDS], access=[f"acl_file {acl}"])
    broker.add_user(FORMER_ID, PASSWORDS["guestd"])
    with started(broker):
        guestd = Guestd(mqtt_settings(broker, FORMER_ID, client_id=FORMER_ID), directory)
        async with guestd.start().connected():
            pass
        publish(broker, 30)
        broker.stop()
        broker.overrides = []
        broker.start()
        guestd.settings = mqtt_settings(broker, FORMER_ID)
        async with guestd.start().connected() as session:
            await session.receive(30)
            assert session.count("sessions_lost") == 0


@pytest.mark.asyncio
async def test_a_broker_that_begins_to_name_sessions_by_another_user_is_recognised_and_the_loss_is_counted(
    directory: Path,
) -> None:
    with free_broker(directory) as broker:
        life = guestd_of(broker, directory).start()
        async with life.connected():
            pass
        broker.stop()
        broker.overrides = []
        broker.start()
        async with life.connected() as session:
            assert session.count("sessions_lost") == 1
            assert session.file.session is not None
            assert session.file.session.name == "guestd"
        async with life.connected() as session:
            assert session.count("sessions_lost") == 1


@pytest.mark.parametrize(
    ("away_seconds", "counted"),
    [(60, ("sessions_lost", "sessions_expired")), (8 * DAY_SECONDS, ("sessions_expired", "sessions_lost"))],
)
@pytest.mark.parametrize("is_named_by_user", [True, False])
@pytest.mark.asyncio
async def test_a_session_that_is_missing_after_a_restart_is_counted_as_lost_or_expired(
    directory: Path, away_seconds: float, counted: tuple[str, str], is_named_by_user: bool
) -> None:
    with free_broker(directory) as broker:
        if is_named_by_user:
            broker.stop()
            broker.overrides = []
            broker.start()
        guestd = guestd_of(broker, directory)
        async with guestd.start().connected():
            pass
        broker.stop()
        broker.forget()
        broker.start()
        guestd.now = lambda: time.time() + away_seconds
        with capture_logs() as logs:
            async with guestd.start().connected() as session:
                assert [session.count(each) for each in counted] == [1, 0]
        assert [each["away_seconds"] >= away_seconds for each in logs if each["log_level"] == "error"] == [True]
        async with guestd.start().connected() as session:
            assert [session.count(each) for each in counted] == [0, 0]


@pytest.mark.parametrize("version", ["5", "3.1.1"])
@pytest.mark.asyncio
async def test_a_session_that_another_client_took_while_guestd_was_away_is_counted(
    directory: Path, version: str
) -> None:
    with free_broker(directory) as broker:
        guestd = guestd_of(broker, directory, version=version)
        async with guestd.start().connected() as session:
            client_id = session.file.client_id
        leave_session(broker, client_id, is_clean=True)
        async with guestd.start().connected() as session:
            assert session.count("sessions_lost") == 1
            assert session.file.client_id == client_id


@pytest.mark.asyncio
async def test_a_damaged_file_is_kept_and_the_loss_of_its_session_counted_once(directory: Path) -> None:
    with free_broker(directory) as broker:
        guestd = guestd_of(broker, directory)
        async with guestd.start().connected() as session:
            before = session.file.client_id
        (directory / FILE).write_bytes(b'{"client_id": "gues')
        with capture_logs() as logs:
            life = guestd.start()
        assert ["is damaged" in each["event"] for each in logs] == [True]
        assert (directory / logs[0]["file"]).name.startswith(f"{FILE}.damaged-")
        for _ in range(2):
            async with life.connected() as session:
                assert session.count("sessions_lost") == 1
                assert session.file.client_id != before


@pytest.mark.parametrize("content", [b"", b"[]", b'{"client_id": ""}', b"\xff", b'{"client_id": "a", "session": 1}'])
def test_every_damage_is_recognised(directory: Path, content: bytes) -> None:
    (directory / FILE).write_bytes(content)
    with capture_logs():
        assert RANDOM_ID.fullmatch(open_session_file(directory, "", is_upgrade=True).client_id)
    assert RANDOM_ID.fullmatch(json.loads((directory / FILE).read_bytes())["client_id"])


def test_a_file_that_cannot_be_read_is_an_error_that_names_it(directory: Path) -> None:
    (directory / FILE).mkdir()
    with pytest.raises(ConfigError, match=f"{FILE}: Is a directory"):
        open_session_file(directory, "", is_upgrade=False)


def test_a_directory_that_stops_taking_the_file_is_logged_once_and_nothing_ends(directory: Path) -> None:
    spool = directory / "spool"
    spool.mkdir()
    file = open_session_file(spool, "", is_upgrade=False)
    client_id = file.client_id
    (spool / FILE).unlink()
    spool.rmdir()
    with capture_logs() as logs:
        file.renew_client_id()
        file.renew_client_id()
    assert ["cannot be written" in each["event"] for each in logs] == [True]
    assert file.client_id != client_id


@pytest.mark.asyncio
async def test_the_subscription_of_an_earlier_prefix_is_known(broker: Broker, directory: Path) -> None:
    guestd = guestd_of(broker, directory)
    async with guestd.start().connected() as session:
        assert session.former_topic is None
    async with guestd.start().connected("other/v1/+/metrics") as session:
        assert session.former_topic == TOPIC
        session.connection.unsubscribe(session.former_topic)
        await asyncio.sleep(0)
    async with guestd.start().connected("other/v1/+/metrics") as session:
        assert session.former_topic is None
    publish(broker, 5)
    async with guestd.start().connected("other/v1/+/metrics") as session:
        assert await session.connection.receive(1, 1000, 1.0) == []
