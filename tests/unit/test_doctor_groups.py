"""The doctor on the group of libvirt's socket: given without need, or needed and not given."""

import os
import socket
from pathlib import Path

import pytest

from guestd.core.groups import find_group_name, list_groups
from guestd.doctor.host import check_libvirt_group
from guestd.hypervisor.uri import get_socket


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """Of a socket that has this process's group."""
    path = tmp_path / "libvirt-sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    path.chmod(0o770)
    return f"qemu:///system?socket={path}"


@pytest.mark.parametrize("unused", ["", "qemu+tls://other/system", "qemu:///session", "test:///default"])
def test_a_group_that_nothing_needs_is_named_with_the_command_that_takes_it(unused: str) -> None:
    (finding,) = check_libvirt_group(unused, {"guestd", "libvirt"})
    assert "can do what root can" in finding.text
    assert "gpasswd --delete guestd libvirt" in finding.fix
    assert list(check_libvirt_group(unused, {"guestd"})) == []


def test_a_user_without_the_sockets_group_is_a_fault(uri: str) -> None:
    group = find_group_name(os.getgid())
    (finding,) = check_libvirt_group(uri, {"guestd"})
    assert f"not in the group {group}" in finding.text
    assert "guestd setup" in finding.fix
    assert list(check_libvirt_group(uri, {"guestd", group})) == []


def test_a_socket_that_everybody_may_use_needs_no_group(uri: str) -> None:
    Path(get_socket(uri)).chmod(0o777)
    assert list(check_libvirt_group(uri, {"guestd"})) == []


def test_a_host_without_the_user_is_not_judged(uri: str) -> None:
    assert list_groups("no-such-user-of-guestd") == set()
    assert list(check_libvirt_group(uri, set())) == []


def test_the_socket_is_libvirts_own_unless_the_uri_names_one() -> None:
    assert get_socket("qemu:///system") == "/run/libvirt/libvirt-sock"
    assert get_socket("qemu:///system?socket=/srv/s") == "/srv/s"
    assert get_socket("qemu+ssh://host/system") == ""
