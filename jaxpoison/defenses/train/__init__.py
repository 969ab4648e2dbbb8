"""Training-time defenses, one file each."""
