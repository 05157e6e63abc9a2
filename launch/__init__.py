"""Starts a run on this machine: a plan, its Redis servers, one process a worker, and a live table.

Workers are started by command line, never by import, so nothing here loads torch or degan and
`python -m launch` answers in a blink.
"""
