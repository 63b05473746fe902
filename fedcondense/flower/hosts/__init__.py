"""Where a federation runs: in this process, or under Flower's Ray simulation."""
