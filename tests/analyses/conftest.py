"""The network and the points of each test module, by its constants."""

import pytest

from tests.analyses.toys import sampled


@pytest.fixture(scope="module")
def model(request):
    """The network that a test module names as its ``NETWORK``, in eval mode."""
    return request.module.NETWORK().eval()


@pytest.fixture(scope="module")
def points(request):
    """The ``POINTS`` test points that an analysis of a test module takes, with their labels."""
    return sampled(request.module.POINTS)
