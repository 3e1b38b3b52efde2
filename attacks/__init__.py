"""One file per attack; the file's name is the registered name."""
