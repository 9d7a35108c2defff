"""Balancers: one way to pick among eligible targets in each file."""
