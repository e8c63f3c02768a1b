"""What every test of the schema uses."""

from support.schema import connection

__all__ = ["connection"]
