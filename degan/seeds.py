"""Seeds for one purpose each, spawned from the experiment's."""

from __future__ import annotations

import hashlib


def spawn_seed(seed: int, *path: int | str) -> int:
    """A seed for one purpose, e.g. `spawn_seed(1, "latents", worker)`; 63 bits."""
    text = repr((seed, *path)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1
