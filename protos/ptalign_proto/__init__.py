"""Generated wire code of `ptalign.v1` and the one version of both distributions.

The import path differs from the wire package on purpose: `ptalign` is the core package.
"""

__version__ = "0.1.0"
