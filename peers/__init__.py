"""Partial exchange of a vector between workers over Redis Streams, with no parameter server.

This package knows flat float32 vectors and bytes. A program can use it without the rest of degan. A worker opens
a bus (`peers.bus.redis.bus.RedisBus`), meets the others (`peers.session.meet.Rendezvous`: `claim`, then `meet`), and
then calls `peers.exchange.exchange.Exchange.exchange(gradient)` once a round. tests/fleets.py runs whole fleets of
workers in threads.
"""
