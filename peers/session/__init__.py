"""Sessions with peers: reading and sending threads, leases, meeting, waiting, state transfer."""
