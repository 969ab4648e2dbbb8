"""Published data-poisoning attacks and the defenses against them, as pure functions in JAX."""

__version__ = "0.1.0"
