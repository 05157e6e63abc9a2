"""Every Redis key that degan uses; all begin with `degan:{run}:{worker}:`.

| key                       | type   | writer     | readers  | lifetime                             |
| ------------------------- | ------ | ---------- | -------- | ------------------------------------ |
| lease                     | string | the worker | all      | PX lease; renewed by its heartbeat   |
| <incarnation>:out         | stream | the worker | all      | exact MAXLEN; EXPIRE, renewed        |
| <incarnation>:to:<peer>   | stream | the worker | the peer | exact MAXLEN; EXPIRE, renewed        |
| <incarnation>:state       | hash   | the worker | all      | EXPIRE, renewed                      |
| incarnation               | string | the worker | itself   | which incarnation is newest; EXPIRE  |
| doctor:<token>:<type>     | any    | the doctor | itself   | EXPIRE, a minute; deleted after use  |

A worker writes only under its own number, on its own node's Redis. The incarnation in the key
makes a worker that was restarted, or a Redis that lost its data, visible to every reader: without it, a cursor
that is ahead of a new stream of the same name would wait for ever without an error.
"""

from __future__ import annotations


class Keys:
    """The keys of one run."""

    def __init__(self, run: str):
        self.run = run

    def lease(self, worker: int) -> str:
        return f"degan:{self.run}:{worker}:lease"

    def out(self, worker: int, incarnation: str) -> str:
        return f"degan:{self.run}:{worker}:{incarnation}:out"

    def direct(self, worker: int, incarnation: str, peer: int) -> str:
        return f"degan:{self.run}:{worker}:{incarnation}:to:{peer}"

    def state(self, worker: int, incarnation: str) -> str:
        return f"degan:{self.run}:{worker}:{incarnation}:state"

    def incarnation(self, worker: int) -> str:
        return f"degan:{self.run}:{worker}:incarnation"

    def probe(self, worker: int, token: str, kind: str) -> str:
        return f"degan:{self.run}:{worker}:doctor:{token}:{kind}"

    def everything(self) -> str:
        """A pattern for SCAN; names of runs have no character that means something in one."""
        return f"degan:{self.run}:*"
