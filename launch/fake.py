"""fakeredis' TCP server as a process: `python -m launch.fake PORT`, the last choice where there is no Redis.

The server departs from fakeredis in two points, and there answers as a real server does. In fakeredis an
error reply (of a repeated XADD, for example) closes the connection, and the rest of the pipeline is lost; here the
connection stays open. In fakeredis the replies of a pipeline wait 40 ms for an acknowledgement; here they are
sent at once.
"""

from __future__ import annotations

import sys

import redis


def serve(port: int) -> None:
    """Serve on 127.0.0.1:`port` until the process is killed.

    Raises:
        OSError: the port is in use.
    """
    from fakeredis import TcpFakeServer

    class Server(TcpFakeServer):
        request_queue_size = 128

    server = Server(("127.0.0.1", port), server_type="redis", server_version=(7, 0))

    class Handler(server.RequestHandlerClass):
        disable_nagle_algorithm = True

        def setup(self) -> None:
            super().setup()
            read = self.current_client.read_response

            def read_response(*args, **kwargs):
                try:
                    return read(*args, **kwargs)
                except redis.ResponseError as error:
                    return error

            self.current_client.read_response = read_response

    server.RequestHandlerClass = Handler
    server.serve_forever()


def main(argv: list[str]) -> int:
    """`python -m launch.fake PORT`."""
    try:
        serve(int(argv[0]))
    except OSError as error:
        print(f"cannot serve on 127.0.0.1:{argv[0]}: {error.strerror or error}", file=sys.stderr)
        return 1
    except (IndexError, ValueError, OverflowError):
        print("usage: python -m launch.fake PORT", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
