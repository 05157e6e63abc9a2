"""The graph of the workers: the peers that each worker follows."""


def complete(worker: int, workers: int) -> tuple[int, ...]:
    """The peers that `worker` follows in a complete graph: every other worker, in order.

    Raises:
        ValueError: the worker number is outside 0..workers-1.
    """
    if not 0 <= worker < workers:
        raise ValueError(f"worker {worker} is outside 0..{workers - 1}")
    return tuple(peer for peer in range(workers) if peer != worker)
