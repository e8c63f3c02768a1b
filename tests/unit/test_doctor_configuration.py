"""What the doctor says of a refused configuration."""

from guestd.doctor.configuration import refused


def test_a_credential_of_a_unit_that_does_not_run_is_no_missing_file() -> None:
    exc = "store.password_file /run/credentials/guestd.service/guestd_store: No such file or directory"
    assert "while the unit runs" in refused(exc).fix
    assert "make the file" in refused("store.password_file /etc/secret: No such file or directory").fix
