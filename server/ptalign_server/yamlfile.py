"""The operator's catalogues on disk: YAML lists that commands rewrite while a server reads them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml


def replace_list(path: Path, entries: Iterable[Any]) -> None:
    """Replaces a file by a list; a reader sees the old one or the new one, never half."""
    partial = path.with_name(path.name + ".new")
    text = yaml.safe_dump(list(entries), sort_keys=False, allow_unicode=True)
    partial.write_text(text, "utf-8")
    partial.replace(path)
