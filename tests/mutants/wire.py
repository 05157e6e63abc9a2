"""Mutants of state transfer, the wire, the bus and the robust rules."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

TRANSFER, RESP, ROBUST = (
    "tests/peers/session/test_transfer.py::",
    "tests/peers/bus/test_resp.py::",
    "tests/peers/vectors/test_reduce_by_hand.py::",
)
LEASES, READER, LAYOUTS = (
    "tests/peers/session/test_leases.py::",
    "tests/peers/session/test_reader.py::",
    "tests/peers/wire/test_layouts.py::",
)
GOLDEN = "tests/peers/wire/test_golden_wire.py::"

MUTANTS = (
    Mutant(
        "the checksum of a joiner's state is not compared",
        "peers/session/transfer.py",
        "        if so_far != expected:\n",
        "        if so_far is None:\n",
        f"{TRANSFER}test_every_other_bit_of_a_chunk_is_refused_by_its_checksum "
        "tests/peers/session/test_fuzz_parts.py::test_a_chunk_of_the_right_length_and_other_bytes_is_refused_by_its_checksum",
    ),
    Mutant(
        "the description of a state is written first",
        "peers/session/transfer.py",
        'return fields | {f"{token}:meta": msgpack.packb({**meta, "arrays": sums})}',
        'return {f"{token}:meta": msgpack.packb({**meta, "arrays": sums})} | fields',
        f"{TRANSFER}test_the_description_of_a_state_is_written_last",
    ),
    Mutant(
        "a state is not copied from its giver",
        "peers/session/transfer.py",
        "chunk = bytes(codec.encode(array[piece.start : piece.stop]))",
        "chunk = codec.encode(array[piece.start : piece.stop])",
        f"{TRANSFER}test_a_state_is_a_copy_of_the_giver_at_that_time",
    ),
    Mutant(
        "an answer of Redis is accepted by its prefix",
        "peers/bus/redis/resp.py",
        "            if here == len(text):\n",
        "            if here:\n",
        f"{RESP}test_a_prefix_of_an_expected_reply_is_no_answer "
        f"{RESP}test_a_reply_that_only_begins_as_expected_is_read_as_any_other",
    ),
    Mutant(
        "a server may claim a list of any length",
        "peers/bus/redis/resp.py",
        "size = self._length(rest, MAX_ITEMS)",
        "size = self._length(rest, 2**60)",
        f"{RESP}test_nonsense_and_absurd_sizes_are_refused_before_memory_is_taken",
    ),
    Mutant(
        "a server may nest lists without end",
        "peers/bus/redis/resp.py",
        "            if not depth:\n",
        "            if depth is None:\n",
        f"{RESP}test_nonsense_and_absurd_sizes_are_refused_before_memory_is_taken",
    ),
    Mutant(
        "small things in a list do not count for a reply's size",
        "peers/bus/redis/resp.py",
        "        self._count(ITEM_BYTES * size)\n",
        "",
        f"{RESP}test_many_small_things_are_a_large_reply_too",
    ),
    Mutant(
        "states travel in the codec of the parts",
        "peers/exchange/layout.py",
        'Kinds({"part": part, "state": (raw,)}, EXCHANGE_MAPS',
        'Kinds({"part": part, "state": (self.codec,)}, EXCHANGE_MAPS',
        f"{LAYOUTS}test_states_are_exact_and_parts_may_be_where_they_travel_whole",
    ),
    Mutant(
        "each chunk has the small numbers of the first",
        "peers/wire/encode.py",
        "x=extras if extras and index == 0 else {},",
        "x=extras or {},",
        f"{GOLDEN}test_a_long_vector_travels_in_chunks_and_only_the_first_has_extras",
    ),
    Mutant(
        "the median norm is the upper one",
        "peers/vectors/reduce.py",
        "[(len(norms) - 1) // 2]",
        "[len(norms) // 2]",
        f"{ROBUST}test_a_clipped_mean_cuts_to_the_lower_median_norm",
    ),
    Mutant(
        "centred clipping takes one step",
        "peers/vectors/reduce.py",
        "CLIP_ROUNDS = 3",
        "CLIP_ROUNDS = 1",
        f"{ROBUST}test_centred_clipping_takes_three_steps_from_the_median",
    ),
    Mutant(
        "a trimmed mean trims one side",
        "peers/vectors/reduce.py",
        "mean(list(rows[cut : len(vectors) - cut]))",
        "mean(list(rows[cut:]))",
        f"{ROBUST}test_a_trimmed_mean_leaves_as_many_out_at_either_end",
    ),
    Mutant(
        "one bad peer makes room in the norm gate for another",
        "peers/vectors/screen.py",
        "others[(len(others) - 1) // 2] if others else 0.0",
        "others[len(others) // 2] if others else 0.0",
        f"{ROBUST}test_the_limit_follows_the_lower_median_of_the_others_where_that_is_larger",
    ),
    Mutant(
        "a peer is dropped before its last entries are read",
        "peers/session/reader.py",
        '                    self._read_on()\n                    self._drop(peer, "its lease has expired")\n',
        '                    self._drop(peer, "its lease has expired")\n                    self._read_on()\n',
        f"{READER}test_a_peer_without_a_lease_is_dropped_once_after_all_its_entries",
    ),
    Mutant(
        "a joiner takes the state of the peer that is furthest behind",
        "peers/session/meet.py",
        "helper = max(strangers, key=lambda peer: (strangers[peer].step, -peer))",
        "helper = min(strangers, key=lambda peer: (strangers[peer].step, -peer))",
        f"{LEASES}test_the_helper_is_the_furthest_peer",
    ),
    Mutant(
        "a written state lives for as long as the lease",
        "peers/bus/redis/bus.py",
        "pipeline.expire(key, max(KEEP_S, int(ttl_s)))",
        "pipeline.expire(key, int(ttl_s))",
        f"{GOLDEN}test_all_writes_of_a_worker_to_its_redis",
    ),
)
