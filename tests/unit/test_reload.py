"""Which changed keys of a configuration are in force at once, and which wait for a restart."""

import msgspec

from guestd.core.config import LimitsSettings, PrivacySettings, Settings, StoreSettings, TelemetrySettings
from guestd.service.reload import RELOADABLE_KEYS, merge_reloadable


def test_a_file_that_says_the_same_changes_nothing() -> None:
    found = merge_reloadable(Settings(), Settings())
    assert (found.settings, found.applied, found.needs_restart) == (Settings(), (), ())


def test_budgets_and_privacy_are_in_force_at_once() -> None:
    read = Settings(
        limits=LimitsSettings(frames_per_second=7), privacy=PrivacySettings(command_lines="off"), stop_grace_seconds=3
    )
    found = merge_reloadable(Settings(), read)
    assert found.settings == read
    assert found.applied == ("limits.frames_per_second", "privacy.command_lines", "stop_grace_seconds")


def test_what_is_wired_at_the_start_waits_and_the_rest_of_its_table_does_not() -> None:
    read = Settings(
        store=StoreSettings(dsn="host=elsewhere", batch_frames=5), telemetry=TelemetrySettings(listen_port=1)
    )
    found = merge_reloadable(Settings(), read)
    assert found.applied == ("store.batch_frames",)
    assert found.needs_restart == ("store.dsn", "telemetry.listen_port")
    assert found.settings == Settings(store=StoreSettings(batch_frames=5))


def test_a_change_that_waits_is_named_again_at_the_next_reload() -> None:
    read = Settings(telemetry=TelemetrySettings(listen_port=1))
    assert merge_reloadable(merge_reloadable(Settings(), read).settings, read).needs_restart == (
        "telemetry.listen_port",
    )


def test_every_key_that_is_in_force_at_once_is_one() -> None:
    flat = {
        f"{table}.{key}"
        for table, keys in msgspec.to_builtins(Settings()).items()
        if isinstance(keys, dict)
        for key in keys
    }
    assert flat | {"stop_grace_seconds"} >= RELOADABLE_KEYS
