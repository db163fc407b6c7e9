"""`python -m bench [--quick]`: ptalign beside what a user would pick instead."""
