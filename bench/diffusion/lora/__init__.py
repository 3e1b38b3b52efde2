"""LoRA files: read by ourselves, resolved by the names of the model's own modules, and merged into
its weights in float32.
"""
