"""The products of a run: checkpoints, saved generators, pictures."""
