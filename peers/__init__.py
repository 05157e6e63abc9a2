"""Partial exchange of a vector between workers over Redis Streams, with no parameter server.

This package knows flat float32 vectors and bytes; it can be used without the rest of degan. A worker opens
a bus (`redis_bus.RedisBus`), meets the others (`rendezvous.Rendezvous`: `claim`, then `meet`), and then calls
`exchange.Exchange.exchange(gradient)` once a round. tests/fleets.py shows the whole of it in a page.
"""
