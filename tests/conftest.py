"""What holds for every test: one thread, and generated input that is the same each time and is not timed."""

import torch
from hypothesis import settings

# Results do not depend on the machine's cores, and workers of pytest-xdist do not fight.
torch.set_num_threads(1)
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
