"""A generator's fit to its start images takes seconds; where the fit itself is not tested, a few steps do."""

from __future__ import annotations

import pytest

from fedcondense.parametrizations import latents


@pytest.fixture
def quick_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take a thirtieth of the steps."""
    monkeypatch.setattr(latents, "_STEPS", latents._STEPS // 30)
