"""Availability attacks: training sets from which nothing useful is learned."""
