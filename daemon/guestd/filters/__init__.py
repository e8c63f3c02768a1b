"""Network filters: rows and libvirt's XML as one canonical model, what holds for a machine, and which rule decides."""
