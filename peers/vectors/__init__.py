"""Vectors: slices, reductions, screening, buffers, graphs; pure."""
