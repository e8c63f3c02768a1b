"""What goes wrong in the store's own tools, and who acts."""


class StoreError(Exception):
    """A command failed; its text is one sentence for the operator. Exit code 1."""


class ConfigurationError(StoreError):
    """The operator must change something before it can work. Exit code 78."""
