"""The run folder as records; no torch, no peers."""
