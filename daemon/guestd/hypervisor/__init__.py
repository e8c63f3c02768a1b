"""The driver of libvirt: connection, domains, blocking calls with a deadline, statistics."""
