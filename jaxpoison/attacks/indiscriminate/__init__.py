"""Indiscriminate attacks: a few added points that lower the victim's test accuracy."""
