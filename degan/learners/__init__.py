"""What is trained, and the pieces between it and the wire."""
