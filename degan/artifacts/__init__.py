"""What a run leaves behind: checkpoints, saved generators, pictures."""
