"""The service: gateway, worker, engines, executor, store and page."""

import os

# gRPC reads this once, when it is imported. It logged a line for every stranger that knocks.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
