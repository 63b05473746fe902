"""Networks near given weights."""

from fedcondense.sources.pools import Pool as Near

__all__ = ["Near"]
