"""Other programs' interfaces over ours: a script changes its import and nothing else."""
