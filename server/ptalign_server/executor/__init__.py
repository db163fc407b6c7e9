"""Training and every pass that needs gradients or logits: one subprocess per job."""

from ptalign_server.executor.run import run_job

__all__ = ["run_job"]
