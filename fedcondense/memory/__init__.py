"""Synthetic sets under a budget that grow with a stream: the memory, and what makes its sets."""

from fedcondense.memory.makers import Condenser, Maker, Selector
from fedcondense.memory.memory import Memory
from fedcondense.memory.updates import UPDATES, Update

__all__ = ["UPDATES", "Condenser", "Maker", "Memory", "Selector", "Update"]
