"""Soak."""


def script(seed, workers, minutes):
    return ""
