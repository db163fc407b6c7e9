"""The worker: takes operations from the store, runs the stages durably, owns the engines."""
