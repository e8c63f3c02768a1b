"""A line becomes rows: sources, the gate, the writer, the quarantine."""
