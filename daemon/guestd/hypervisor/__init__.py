"""The libvirt driver: connection, domain snapshots, blocking calls with a deadline, statistics."""
