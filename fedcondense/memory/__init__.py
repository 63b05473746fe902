"""Synthetic sets under a budget that grow with a stream."""

from fedcondense.memory.memory import Condenser, Memory, Selector

__all__ = ["Condenser", "Memory", "Selector"]
