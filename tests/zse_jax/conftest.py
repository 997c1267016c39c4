"""What several modules here need."""

from collections.abc import Iterator

import pytest

from tests.zse_jax import tiny


@pytest.fixture(scope="module")
def tiny_system() -> Iterator[None]:
    """The system `tiny` is one of the systems, for a whole module."""
    with pytest.MonkeyPatch.context() as patch:
        tiny.install(patch.setattr)
        yield
