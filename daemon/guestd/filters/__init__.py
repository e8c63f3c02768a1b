"""Network filters of a host: compiled from the store's rows, compared with libvirt's, and installed there."""
