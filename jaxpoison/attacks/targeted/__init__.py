"""Attacks on single targets: test images that shall be read as a class of the attacker's."""
