"""How many random examples a property test draws: its share by the profile, the environment variable HYPOTHESIS_PROFILE.

"ci" draws a tenth, in seconds; "thorough", that of `make test-slow`, all of them, the same in every run; "search" 20
times as many, others in every run.
"""

import os

from hypothesis import HealthCheck, settings

SHARES = {"ci": 0.1, "thorough": 1, "search": 20}
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "ci")
STATED = 100
"""The examples of a test that states no number."""


def examples(n: int) -> settings:
    """A decorator: so many random examples, times the profile's share."""
    return settings(max_examples=max(1, round(n * SHARES[PROFILE])))


def load_profile() -> None:
    """The settings of all property tests."""
    settings.register_profile(
        PROFILE,
        derandomize=PROFILE != "search",
        deadline=None,
        database=None,
        max_examples=round(STATED * SHARES[PROFILE]),
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
    settings.load_profile(PROFILE)
