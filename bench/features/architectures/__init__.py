"""The networks that turn pictures into vectors, as our own code: files hold their weights only."""
