"""What a credential looks like: one table for chat excerpts and for log lines."""

from __future__ import annotations

FROM = r"(?<![A-Za-z0-9_])"
"""Where a word begins. No `\\b`, for kana touch a Latin letter without one."""

BARE = (
    # A digit, for what has none is a word: hf_hub_download. It is looked for so far, no further.
    rf"{FROM}(?:(?:sk|pk|rk|hf|gh[oprsu]|github_pat|glpat|xox[a-z]|xapp|pta)(?:[-_]|(?=\w{{12}}))"
    r"(?=[A-Za-z0-9_-]{0,40}\d)[A-Za-z0-9_-]{8,}"
    r"|A[KS]IA(?=[A-Z0-9]{0,20}\d)[A-Z0-9]{12,}"
    r"|AIza[A-Za-z0-9_-]{20,}"
    # One beginning for a run of hyphens: else steps go by the square of its length.
    r"|(?<!-)eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*)"
    r"|-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----[^-]{0,8000}"
    r"(?:-----END [A-Z ]{0,20}PRIVATE KEY-----)?"
)
"""A credential without its name: it begins as those of known makers do, is a JSON web token,
or a private key as a PEM file has it."""

PASSWORD = (
    rf"{FROM}(?:[A-Za-z0-9_]*(?:password|passwd|passcode|passphrase|pwd|token|api[ _-]?key)"
    r"|(?:[A-Za-z0-9_]+_)?pin)"
)
"""Names that prose, too, gives a value by "is"."""

KEY = rf"{FROM}[A-Za-z0-9_]*(?:secret|credentials?|(?:access|private|secret)[ _-]?key)"
"""Names that prose gives other things by "is": the secret is to listen."""

HEADER = rf"{FROM}[A-Za-z0-9_]*authorization"

VALUE = (
    r"(?:\"(?:[^\"\\]|\\.){0,8000}+\"|'(?:[^'\\]|\\.){0,8000}+'|[\"'][^\n\"']{0,8000}+"
    r"|(?:(?:bearer|basic|token)\s+)?\S+)"
)
"""What is given: a quoted text whole, to the end of the line where no quote ends it; or a word,
with the scheme before it."""

GIVEN = r"[\"']?\s*[:=]+>?\s*"
"""Between a name and its value."""
