"""Faults in fleets of real workers over real Redis servers; `python -m tests.chaos` injects all of them."""
