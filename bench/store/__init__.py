"""Images that were made once and are kept: shards in a folder or behind a URL."""
