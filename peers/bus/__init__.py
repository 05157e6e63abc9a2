"""The bus: its door, and its in-memory twin."""
