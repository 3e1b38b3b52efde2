"""One file per mitigation; the file's name is the registered name."""
