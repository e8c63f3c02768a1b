"""The groups of guestd's user on this host, of which one is as good as root."""

from __future__ import annotations

import grp
import pwd

USER = "guestd"
# Of libvirt's socket, in Debian's libvirt and others. deploy/systemd/sysusers-libvirt.conf names it too.
GROUP = "libvirt"
TAKE_GROUP = f"gpasswd --delete {USER} {GROUP}; systemctl restart guestd"


def list_groups(user: str = USER) -> set[str]:
    """List the groups of a user by name; none if there is no such user."""
    try:
        own = pwd.getpwnam(user).pw_gid
    except KeyError:
        return set()
    return {each.gr_name for each in grp.getgrall() if each.gr_gid == own or user in each.gr_mem}


def find_group_name(number: int) -> str:
    """Find the name of a group; its number as text if it has none."""
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
