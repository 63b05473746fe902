from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest

from fedcondense.errors import SettingError
from fedcondense.machine import MOST_THREADS, set_threads

_FAULTS = """
import json, resource, torch
from fedcondense.machine import keep_memory
keep_memory()
faults = []
for _ in range(10):
    some = [torch.ones(250_000) for _ in range(8)]
    del some
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(json.dumps(faults[-1] - faults[4]))
"""


def faults(**variables: str) -> int:
    """Return how often the system had to clear a page while memory was allocated and freed again and again."""
    free = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", _FAULTS]
    return int(json.loads(subprocess.run(command, env={**free, **variables}, capture_output=True, check=True).stdout))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have their own ways")
class TestKeepMemory:
    def test_what_is_freed_is_there_for_what_is_allocated_next_unless_the_allocator_was_set(self) -> None:
        set_by_user = faults(MALLOC_TRIM_THRESHOLD_="131072")
        if set_by_user == 0:
            pytest.skip("this system counts no page faults")  # as some sandboxes do
        assert 100 * faults() < set_by_user


class TestSetThreads:
    @pytest.mark.parametrize("number", [0, -1, MOST_THREADS + 1])
    def test_numbers_that_would_end_the_process_are_refused(self, number: int) -> None:
        with pytest.raises(SettingError, match=f"{number} threads; needed: 1 to"):
            set_threads(number)
