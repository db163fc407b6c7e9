"""The operator's commands behind `ptalign-server`."""
