"""The annotation page: fewer than 50 marks on proposed pairs, text hidden until asked for."""

from ptalign_server.page.app import create_app
from ptalign_server.page.library import AnnotationLibrary, Board, Full, Item, Mark, Queue, Visitor

__all__ = [
    "AnnotationLibrary",
    "Board",
    "Full",
    "Item",
    "Mark",
    "Queue",
    "Visitor",
    "create_app",
]
