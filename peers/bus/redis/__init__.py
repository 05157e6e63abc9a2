"""The bus on Redis, the only room of peers that speaks it."""
