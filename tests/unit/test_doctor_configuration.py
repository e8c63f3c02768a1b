"""Fixes for errors in the configuration."""

from guestd.doctor.configuration import explain_config_error


def test_a_credential_of_a_stopped_unit_is_not_reported_as_a_missing_file() -> None:
    error = "store.password_file /run/credentials/guestd.service/guestd_store: No such file or directory"
    assert "while the unit runs" in explain_config_error(error).fix
    assert "create the file" in explain_config_error("store.password_file /etc/secret: No such file or directory").fix
