"""`bench suite new`: from a user's model, prompts and pictures to a suite file."""
