"""Starts a run on this machine: a plan, its Redis servers, one process a worker, and a live table.

Workers are started by command line, never by import. So the package loads no torch, and `python -m launch`
starts fast.
"""
