"""Text that must not be read by accident."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Any

from pydantic import AfterValidator, GetCoreSchemaHandler, SerializationInfo
from pydantic_core import CoreSchema, core_schema

_SHOWN = re.compile(r"<sealed \d+ chars sha256:[0-9a-f]{12}>")


class SealedText:
    """A string whose `repr`, `str` and plain serialisation show only its length and hash.

    `reveal()` is the one way to the text, so that a search for it finds every reader.
    `model_dump(context={"reveal": True})` writes the text: stores that encrypt use it.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself. Never log it, never put it in an error."""
        return self._text

    @property
    def sha256(self) -> str:
        """First 12 hex digits of the text's SHA-256."""
        return hashlib.sha256(self._text.encode("utf-8", "surrogatepass")).hexdigest()[:12]

    def __len__(self) -> int:
        return len(self._text)

    def __repr__(self) -> str:
        return f"<sealed {len(self._text)} chars sha256:{self.sha256}>"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SealedText) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)

    @property
    def is_description(self) -> bool:
        """Whether this holds what another sealed text showed of itself, and not a text."""
        return _SHOWN.fullmatch(self._text) is not None

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def read(value: Any) -> SealedText:
            if isinstance(value, SealedText):
                return value
            if isinstance(value, str):
                return cls(value)
            raise ValueError("sealed text is made from a string")

        def write(value: SealedText, info: SerializationInfo) -> str:
            asked = isinstance(info.context, dict) and info.context.get("reveal")
            return value.reveal() if asked else repr(value)

        return core_schema.no_info_plain_validator_function(
            read,
            serialization=core_schema.plain_serializer_function_ser_schema(write, info_arg=True),
        )


def _whole(text: SealedText) -> SealedText:
    if text.is_description:
        raise ValueError(
            "holds the description of a sealed text and not the text: it was written without "
            'context={"reveal": True}, and cannot be read back'
        )
    return text


WholeText = Annotated[SealedText, AfterValidator(_whole)]
"""Sealed text that is learned from: what plain serialisation leaves of it is refused."""
