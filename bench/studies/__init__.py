"""What takes many runs: tuning, calibration, analyses of masks, and experiments that train."""
