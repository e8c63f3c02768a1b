"""Messages to rows: normalising, JSON columns, redaction, batches; compiled where there is a C compiler. Pure."""
