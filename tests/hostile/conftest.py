"""What the tests of hostile media share."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # workers find `bad_readers` where this process does


@pytest.fixture(autouse=True)
def own_workers():
    """No worker of one test serves another."""
    from omnikit import reading

    yield
    while reading._idle:
        reading._idle.pop().end()
