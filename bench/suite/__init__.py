"""The protocol: what a suite file says, its prompts, its paths, and the files it still needs."""
