"""Where a step's network comes from: untrained, in pools, trained on either side, along the trajectories of experts."""
