"""The generation pool: engines started, proved, watched, routed to, and lent out as one."""

from ptalign_server.pool.pool import Pool, PoolEngine
from ptalign_server.pool.settings import EngineStatus, PoolSettings, State

__all__ = ["EngineStatus", "Pool", "PoolEngine", "PoolSettings", "State"]
