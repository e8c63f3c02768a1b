"""guestd as a service: systemd, watchdog, reload, HTTP pages."""
