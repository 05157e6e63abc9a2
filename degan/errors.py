"""Errors of the GAN floor that a person can cause: one line, exit code 2, never a traceback.

config.errors.UsageError
├── DataError      a data set that is missing, damaged, or too small for the request
├── CacheError     the cache folder cannot be used, or another process holds it for too long
└── WeightsError   a file of feature-extractor weights that is missing or of another network
"""

from __future__ import annotations

from config.errors import UsageError


class DataError(UsageError):
    """The data is missing, damaged, or too small for the request."""


class CacheError(UsageError):
    """The cache folder (`$DEGAN_CACHE` or `~/.cache/degan`) cannot be used."""


class WeightsError(UsageError):
    """A weights file that a person named is missing or holds another network."""
