"""One server of forked children for all tests of this folder."""

import pytest

from tests.faults.forking import Forking


@pytest.fixture(scope="session")
def moe():
    """Run ``moe ...`` in a process of its own: ``moe(*words, setup=CODE, stdout=...)`` -> (code, out, err)."""
    server = Forking()
    yield server
    server.close()
