"""How hard the property tests look: enough to find what is wrong, short enough to run before every commit."""

from hypothesis import settings

settings.register_profile("unit", max_examples=40, deadline=None, database=None)
settings.load_profile("unit")
