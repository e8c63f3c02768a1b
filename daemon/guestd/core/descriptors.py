"""File descriptors when they run short: pages give way to channels, and channels to the spool, the store and libvirt.

A new descriptor has the lowest free number, so its number says how many are left at most.
"""

from __future__ import annotations

import resource

# The spool and the lists of sockets, connections to store, broker and libvirt, pipes of iptables-save: about 40 at
# the most, of which half are open from the start.
KEPT_FROM_CHANNELS = 32
# Connections of the pages keep these free besides.
KEPT_FROM_PAGES = KEPT_FROM_CHANNELS + 32


def is_kept(descriptor: int, kept: int) -> bool:
    """Whether this new descriptor is one of the last `kept` below the limit of open files."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return limit != resource.RLIM_INFINITY and descriptor >= limit - kept
