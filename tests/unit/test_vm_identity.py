"""Which host may use a row of Host: two hosts with one name are told apart, one that is restarted is the same."""

from dataclasses import replace

import pytest

from guestd.vms.identity import HostIdentity, StoredHost, find_conflict, hash_machine_id, is_renamed

OURS = HostIdentity("4c4c4544", "0123456789abcdef", "boot 2")
STORED = StoredHost("4c4c4544/0123456789abcdef", "boot 1", has_earlier_leases=True)


def test_a_host_that_was_restarted_is_the_same() -> None:
    assert find_conflict(STORED, OURS) is None
    assert not is_renamed(STORED, OURS)


@pytest.mark.parametrize(
    "other",
    [
        replace(OURS, uuid="another"),
        replace(OURS, uuid=""),
        replace(OURS, machine="another"),
        replace(OURS, machine=""),
        # Containers of one kernel have its boot in common.
        replace(OURS, machine="another", boot="boot 1"),
        replace(OURS, uuid="another", machine="", boot="boot 1"),
    ],
    ids=str,
)
def test_a_host_with_another_uuid_or_another_machine_id_is_another_one(other: HostIdentity) -> None:
    assert find_conflict(STORED, other) == "its identity is 4c4c4544/0123456789abcdef"
    assert not is_renamed(STORED, other)


def test_a_clone_of_an_image_is_another_host() -> None:
    assert find_conflict(STORED, replace(OURS, uuid="another")) is not None


def test_a_uuid_that_libvirt_makes_up_at_each_start_changes_within_one_boot_of_the_same_host() -> None:
    for uuid in ("another", ""):
        renamed = replace(OURS, uuid=uuid, boot="boot 1")
        assert (find_conflict(STORED, renamed), is_renamed(STORED, renamed)) == (None, True)
    unknown = replace(STORED, identity="none/0123456789abcdef")
    assert is_renamed(unknown, replace(OURS, boot="boot 1"))
    assert not is_renamed(unknown, replace(OURS, uuid="", boot="boot 1"))
    # Where libvirt is on another machine, its boot is not known.
    remote = StoredHost("4c4c4544/none", "", has_earlier_leases=False)
    assert find_conflict(remote, HostIdentity("another", "", "")) is not None
    assert find_conflict(replace(remote, identity="4c4c4544/0123456789abcdef"), replace(OURS, uuid="x", boot=""))
    assert find_conflict(remote, HostIdentity("4c4c4544", "", "")) is None


def test_a_row_without_identity_is_taken_unless_it_has_leases_of_an_earlier_boot() -> None:
    earlier = StoredHost(None, None, has_earlier_leases=True)
    assert find_conflict(earlier, OURS) == "it has leases of an earlier boot and no identity"
    assert find_conflict(replace(earlier, has_earlier_leases=False), OURS) is None
    # Nothing follows from the boot where libvirt is on another machine: such leases are never taken for ended.
    assert find_conflict(earlier, replace(OURS, boot="")) is None
    assert not is_renamed(earlier, OURS)


def test_an_identity_shows_what_is_not_known() -> None:
    assert str(OURS) == "4c4c4544/0123456789abcdef"
    assert str(HostIdentity("", "", "")) == "none/none"


def test_a_machine_id_is_stored_as_a_hash() -> None:
    assert hash_machine_id("3d1219c7c4c5404aaa1f6d2a48adfda4") == "0611257fe2b2f464"
    for missing in ("", "uninitialized"):
        assert hash_machine_id(missing) == ""
