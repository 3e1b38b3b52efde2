"""`bench check`: the contracts of methods, metrics and attacks, tried on a tiny model."""
