"""`bench experiment`: what memorization depends on, by models that are trained for the question."""
