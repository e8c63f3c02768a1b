"""The driver of TimescaleDB: connection, COPY, batches, maintenance, roll-ups. psycopg."""
