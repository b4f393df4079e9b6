"""How hypothesis works here: the same examples every time in CI, new ones at every run by hand.

A failing example is shrunk, but not explained: that takes gigabytes for the state machines.
"""

import os

from hypothesis import Phase, settings

PHASES = (Phase.explicit, Phase.reuse, Phase.generate, Phase.target, Phase.shrink)
settings.register_profile("ci", derandomize=True, deadline=None, phases=PHASES, print_blob=True)
settings.register_profile("by hand", deadline=None, phases=PHASES, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "by hand")
