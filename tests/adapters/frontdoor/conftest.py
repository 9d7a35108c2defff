"""What the tests of the exchange share."""

import pytest


@pytest.fixture(params=[True, False], ids=["calls-back", "events-only"])
def calls_back(request: pytest.FixtureRequest) -> bool:
    """Whether the server tells of a leaving client by itself."""
    return bool(request.param)
