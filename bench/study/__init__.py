"""`python -m bench.study [--quick]`: the bare model and five methods on one pair set."""
