"""Golden files: weights to the bit, and run folders of today, which a move of the code must not change."""
