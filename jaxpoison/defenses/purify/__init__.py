"""Purifiers, one file each."""
