"""What the toolkit withstands, tried in one command: `make trust`, at most ten minutes on two cores."""
