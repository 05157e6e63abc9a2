"""How many entries the outbox of an exchange keeps: so many rounds of parts, and the states of their sync points."""

from __future__ import annotations

from peers.exchange.layout import ExchangeLayout
from peers.exchange.options import Options


class Outbox:
    """The budget of an outbox. Pure.

    Args:
        options: how many rounds are kept, and how often there is a sync point.
        layout: how many entries each message takes.

    Attributes:
        entries: how many entries are kept.
        state_entries: how many of these belong to `state` messages.
        least_entries: how many entries are kept where Redis is full.
        payload_bytes: the largest payload of an entry.
    """

    def __init__(self, options: Options, layout: ExchangeLayout):
        self._options, self._layout = options, layout
        least = options.keep_rounds if options.least_rounds is None else options.least_rounds
        self.entries, self.least_entries = self._entries(options.keep_rounds), self._entries(least)
        self.state_entries = self._state_entries(options.keep_rounds)
        self.payload_bytes = layout.largest_payload_bytes()

    def _entries(self, keep_rounds: int) -> int:
        # With `parts: auto` a round's part may also be a small one, of very many parts.
        small = max(self._layout.parts, default=0)
        return keep_rounds * self._layout.entries_per_round() + small + self._state_entries(keep_rounds) + 16

    def _state_entries(self, keep_rounds: int) -> int:
        states = sum(keep_rounds // period + 2 for period in self._options.sync_periods)
        return states * self._layout.entries_per_state()
