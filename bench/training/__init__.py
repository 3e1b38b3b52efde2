"""Training: one resumable loop, and the loss of a denoiser on captioned pictures."""
