"""Server in a container: replies on TCP and UDP, port 80, with the address that it sees and its own host name.

Little is imported: everything that this process has open becomes the image (see image.py).
"""

import posix
import selectors
import signal
import socket

PORT = 80


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: posix._exit(0))  # process 1 has no default action
    tcp, udp = (bound(kind) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM))
    tcp.listen(64)
    waiting = selectors.DefaultSelector()
    waiting.register(tcp, selectors.EVENT_READ)
    waiting.register(udp, selectors.EVENT_READ)
    print("ready", flush=True)
    while True:
        for key, _ in waiting.select():
            if key.fileobj is tcp:
                connection, peer = tcp.accept()
                connection.sendall(answer(peer))
                connection.close()
            else:
                _, peer = udp.recvfrom(100)
                udp.sendto(answer(peer), peer)


def bound(kind: int) -> socket.socket:
    """A socket for IPv4 and IPv6 alike."""
    made = socket.socket(socket.AF_INET6, kind)
    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("::", PORT))
    return made


def answer(peer: tuple[str, int]) -> bytes:
    return f"{peer[0].removeprefix('::ffff:')} {posix.uname().nodename}".encode()


if __name__ == "__main__":
    main()
