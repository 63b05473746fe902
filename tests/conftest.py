"""One thread a process: results do not depend on the machine's cores, and workers of pytest-xdist do not fight."""

import torch

torch.set_num_threads(1)
