"""Languages of locale tags."""

from __future__ import annotations

import re


def language(locale: str) -> str:
    """The language of a locale: "ja" of "ja", "ja-JP" (BCP 47, caseless) and "ja_JP" (POSIX)."""
    return re.split("[-_]", locale, maxsplit=1)[0].lower()
