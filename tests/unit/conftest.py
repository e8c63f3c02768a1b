"""How hard the property tests look: enough to find what is wrong, short enough to run before every commit."""

import os

from hypothesis import Phase, settings

settings.register_profile("unit", max_examples=40, deadline=None, database=None)
# A mutant only has to be found: neither made small nor found by luck.
settings.register_profile(
    "mutant", settings.get_profile("unit"), derandomize=True, phases=[Phase.explicit, Phase.generate]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "unit"))
