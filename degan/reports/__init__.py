"""Pages made from run folders; no torch."""
