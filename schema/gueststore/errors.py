"""The errors of the store's tools and who must act on each."""


class StoreError(Exception):
    """A command failed; the text is one sentence for the operator. Exit code 1."""


class ConfigurationError(StoreError):
    """The operator must change the configuration before the command can work. Exit code 78."""
