"""Condensing: the loop for every objective and parametrization, what it starts from, costs, and resumes from."""
