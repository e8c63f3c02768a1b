"""Every metric of guestd in one table, the guests' and domains' gauges, and how they are exposed."""
