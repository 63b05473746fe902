"""Training a network on a set, what a set is worth, and soft labels; on a GPU, steps as graphs."""
