"""Experiments of many runs: tuning, calibration, masks, and fine-tuning with what follows."""
