"""Mutants: realistic bugs put into the code one at a time, each of which a named test must see (`make mutants`)."""
