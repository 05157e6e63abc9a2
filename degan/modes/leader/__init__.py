"""What the modes with a leader share."""
