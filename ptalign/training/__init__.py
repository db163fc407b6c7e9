"""The engine room of `align` and `probe`: samples, the prompt tree, the step, checkpoints.

Imports torch; nothing light may import this package.
"""
