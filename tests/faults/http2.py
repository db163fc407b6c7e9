"""HTTP/2 by hand: what no gRPC library would send."""

from __future__ import annotations

import contextlib
import socket
import struct
import zlib

DATA, HEADERS, RESET, SETTINGS = 0, 1, 3, 4
END_STREAM, END_HEADERS = 1, 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
CANCEL = struct.pack(">I", 8)


def frame(kind: int, stream: int, body: bytes = b"", flags: int = 0) -> bytes:
    return struct.pack(">I", len(body))[1:] + struct.pack(">BBI", kind, flags, stream) + body


def literal(name: str, value: str) -> bytes:
    """A header without indexing or Huffman code; both parts shorter than 127 bytes."""
    return b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


def headers(path: str, port: int, **more: str) -> bytes:
    """Of a gRPC call."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": f"127.0.0.1:{port}",
        "te": "trailers",
        "content-type": "application/grpc",
    } | {name.replace("_", "-"): value for name, value in more.items()}
    return b"".join(literal(name, value) for name, value in fields.items())


class Connection:
    """A raw connection to a gRPC port; says whether the server still holds it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self.stream = -1
        self.send(PREFACE + frame(SETTINGS, 0))

    def send(self, data: bytes) -> bool:
        try:
            self.socket.sendall(data)
        except OSError:
            return False
        return True

    def open(self, path: str, **more: str) -> int:
        """Begins a call; its stream."""
        self.stream += 2
        block = headers(path, self.port, **more)
        self.send(frame(HEADERS, self.stream, block, END_HEADERS))
        return self.stream

    def drain(self) -> None:
        """Reads what has come, so that the server's writes are not held up."""
        self.socket.setblocking(False)
        with contextlib.suppress(OSError):
            while self.socket.recv(65536):
                pass
        self.socket.settimeout(20)

    def answer(self, ending: bytes) -> bytes:
        """What comes until some bytes, the end of the connection or 60 silent seconds."""
        self.socket.settimeout(60)
        found = b""
        with contextlib.suppress(OSError):
            while ending not in found and (more := self.socket.recv(65536)):
                found += more
        return found

    def close(self) -> None:
        self.socket.close()


def bomb(size: int) -> list[bytes]:
    """A gRPC message of `size` zero bytes, compressed about a thousand times, in DATA's pieces.

    At most 60 MiB: more than 65,535 bytes on the wire would have to wait for the server's window.
    """
    press = zlib.compressobj(9, zlib.DEFLATED, 31)
    block = bytes(1 << 20)
    body = b"".join(press.compress(block) for _ in range(size >> 20)) + press.flush()
    message = b"\1" + struct.pack(">I", len(body)) + body
    return [message[start : start + 16384] for start in range(0, len(message), 16384)]
