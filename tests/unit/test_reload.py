"""Which changed keys of the configuration take effect on reload, and which need a restart."""

import msgspec

from guestd.core.config import LimitsSettings, PrivacySettings, Settings, StoreSettings, TelemetrySettings
from guestd.service.reload import RELOADABLE_KEYS, merge_reloadable


def test_an_unchanged_file_changes_nothing() -> None:
    result = merge_reloadable(Settings(), Settings())
    assert (result.settings, result.applied, result.needs_restart) == (Settings(), (), ())


def test_rate_limits_and_privacy_are_applied_at_once() -> None:
    read = Settings(
        limits=LimitsSettings(frames_per_second=7), privacy=PrivacySettings(command_lines="off"), stop_grace_seconds=3
    )
    result = merge_reloadable(Settings(), read)
    assert result.settings == read
    assert result.applied == ("limits.frames_per_second", "privacy.command_lines", "stop_grace_seconds")


def test_keys_that_need_a_restart_do_not_delay_the_rest_of_their_table() -> None:
    read = Settings(
        store=StoreSettings(dsn="host=elsewhere", batch_frames=5), telemetry=TelemetrySettings(listen_port=1)
    )
    result = merge_reloadable(Settings(), read)
    assert result.applied == ("store.batch_frames",)
    assert result.needs_restart == ("store.dsn", "telemetry.listen_port")
    assert result.settings == Settings(store=StoreSettings(batch_frames=5))


def test_a_change_that_needs_a_restart_is_listed_again_at_the_next_reload() -> None:
    read = Settings(telemetry=TelemetrySettings(listen_port=1))
    assert merge_reloadable(merge_reloadable(Settings(), read).settings, read).needs_restart == (
        "telemetry.listen_port",
    )


def test_every_reloadable_key_exists() -> None:
    flat = {
        f"{table}.{key}"
        for table, keys in msgspec.to_builtins(Settings()).items()
        if isinstance(keys, dict)
        for key in keys
    }
    assert flat | {"stop_grace_seconds"} >= RELOADABLE_KEYS
