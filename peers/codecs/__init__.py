"""Codecs: float32 to bytes and back; pure."""
