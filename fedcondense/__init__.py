"""fedcondense: dataset distillation as a library, for federated and continual learning."""
