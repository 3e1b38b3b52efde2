"""Detectors: each file is a way to tell from a prompt or its images that they are memorized."""
