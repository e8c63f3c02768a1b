"""What every test of the schema uses."""

from fix_schema import connection

__all__ = ["connection"]
