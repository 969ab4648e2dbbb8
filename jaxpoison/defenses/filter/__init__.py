"""Filters: which rows of a training set to leave out, before a victim sees it."""
