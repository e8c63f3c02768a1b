"""Used by every layer: configuration, errors, logging, tasks and retry, the machine registry."""
