"""guestd as a service: systemd notification, watchdog, configuration reload, HTTP pages."""
