"""The protocol: what a suite file says, its prompts, its paths, and what it still needs."""
