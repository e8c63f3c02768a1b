"""`guestd doctor` at a broker: whether a guest could take guestd's session, found without entering that session."""

from pathlib import Path

import pytest
from tools.harness.broker import Broker
from tools.harness.ports import free_port

from guestd.core.config import Settings, SpoolSettings, TelemetrySettings
from guestd.doctor.broker import check_broker
from guestd.doctor.finding import Finding
from guestd.mqtt.session_file import FILE
from support.scripted_broker import CONNECT, Peer, scripted_broker
from support.sessions import TOPIC, Guestd, free_broker, leave_session, mqtt_settings, publish


async def check(guestd: Guestd) -> dict[str, Finding]:
    settings = Settings(
        mqtt=guestd.settings,
        spool=SpoolSettings(directory=str(guestd.directory)),
        telemetry=TelemetrySettings(listen_port=free_port()),
    )
    return {finding.subject: finding async for finding in check_broker(settings)}


@pytest.mark.asyncio
async def test_a_broker_that_names_sessions_by_the_user_is_ok_and_the_session_is_not_entered(
    broker: Broker, directory: Path
) -> None:
    guestd = Guestd(mqtt_settings(broker), directory)
    async with guestd.start().connected() as session:
        found = await check(guestd)
        publish(broker, 5)
        await session.receive(5)
    assert {subject: each.level for subject, each in found.items()} == {"broker": "ok", "client id": "ok"}
    publish(broker, 5)
    assert (await check(guestd))["client id"].level == "ok"
    async with guestd.start().connected() as session:
        await session.receive(5)
        assert session.count("sessions_lost") == 0


@pytest.mark.asyncio
async def test_a_broker_that_lets_users_choose_their_id_is_found_without_entering_the_session(
    directory: Path,
) -> None:
    with free_broker(directory) as broker:
        guestd = Guestd(mqtt_settings(broker), directory)
        async with guestd.start().connected() as session:
            found = await check(guestd)
            publish(broker, 5)
            await session.receive(5)
        publish(broker, 5)
        assert (await check(guestd))["client id"].level == "warning"
        async with guestd.start().connected() as session:
            await session.receive(5)
            assert session.count("sessions_lost") == 0
    assert found["client id"].level == "warning"
    assert "use_username_as_clientid" in found["client id"].fix
    assert found["broker"].level == "ok"


@pytest.mark.asyncio
async def test_before_the_first_start_the_naming_is_found_and_no_session_stays(broker: Broker, directory: Path) -> None:
    guestd = Guestd(mqtt_settings(broker), directory)
    assert (await check(guestd))["client id"].level == "ok"
    async with guestd.start().connected() as session:
        assert not session.connection.announced.has_session


@pytest.mark.asyncio
async def test_a_session_of_an_earlier_version_keeps_its_messages(broker: Broker, directory: Path) -> None:
    leave_session(broker, "guestd-host", TOPIC)
    publish(broker, 20)
    guestd = Guestd(mqtt_settings(broker), directory)
    assert (await check(guestd))["client id"].level == "ok"
    async with guestd.start(is_upgrade=True).connected() as session:
        await session.receive(20)


@pytest.mark.asyncio
async def test_a_session_of_the_older_protocol_is_not_entered(broker: Broker, directory: Path) -> None:
    guestd = Guestd(mqtt_settings(broker, version="3.1.1"), directory)
    async with guestd.start().connected() as session:
        found = await check(guestd)
        publish(broker, 5)
        await session.receive(5)
    assert list(found) == ["client id"]
    assert 'mqtt.version = "5"' in found["client id"].fix


@pytest.mark.asyncio
async def test_with_a_damaged_file_nothing_is_entered(broker: Broker, directory: Path) -> None:
    (directory / FILE).write_bytes(b"{")
    found = await check(Guestd(mqtt_settings(broker), directory))
    assert list(found) == ["client id"]
    assert "is damaged" in found["client id"].fix


@pytest.mark.asyncio
async def test_a_broker_that_refuses_other_ids_of_the_user_is_ok(broker: Broker, directory: Path) -> None:
    async def script(peer: Peer) -> None:
        packet_type, content = await peer.read()
        assert packet_type == CONNECT
        is_own = b"guestd-own" in content
        await peer.send(0x20, bytes([0, 0 if is_own else 0x85, 0]))
        if is_own:
            packet_type, content = await peer.read()
            await peer.send(0x90, content[:2] + b"\x00\x01")
        await peer.read_until_end()

    async with scripted_broker(script) as port:
        settings = mqtt_settings(broker, client_id="guestd-own", port=port)
        guestd = Guestd(settings, directory)
        async with guestd.start().connected() as session:
            assert session.file.session is not None
            assert session.file.session.client_id == "guestd-own"
        found = await check(guestd)
    assert found["client id"].level == "ok"
    assert "Client identifier not valid" in found["client id"].text
