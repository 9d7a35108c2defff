"""Policies that keep a request alive or end it in time: one in each file."""
