"""The durable queue on local disk: SQLite."""
