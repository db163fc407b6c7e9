from __future__ import annotations
from typing import Any
from ptalign_proto.v1 import library_pb2_grpc as rpc
class Library(rpc.LibraryServicer):
    def __init__(self, store: Any, catalogue: Any) -> None:
        self.store = store
