"""The mounts of a machine, as the kernel lists them."""

from hypothesis import given
from hypothesis import strategies as st

from guestd.core.mounts import parse_mounts


def test_a_mount_point_has_any_bytes_but_the_end_of_a_text() -> None:
    text = (
        b"/dev/a / ext4 rw 0 0\nt /a\\040b\\134040 tmpfs rw 0 0\nt /caf\xe9 xfs rw 0 0\nt /caf\xe9 nfs rw 0 0\n\nodd\n"
    )
    mounts = parse_mounts(text.decode(errors="surrogateescape"))
    assert mounts == {"/": "ext4", "/a b\\040": "tmpfs", "/caf\udce9": "nfs"}


@given(st.binary())
def test_any_bytes_are_mounts(content: bytes) -> None:
    assert all(isinstance(kind, str) for kind in parse_mounts(content.decode(errors="surrogateescape")).values())
