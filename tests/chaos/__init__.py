"""Faults done to fleets of real workers over real Redis servers; `python -m tests.chaos` does all of them."""
