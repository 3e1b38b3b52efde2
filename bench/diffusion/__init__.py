"""The model under test: requests, the denoiser, its weight files, and how it is executed."""
