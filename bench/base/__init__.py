"""What knows nothing of diffusion or benchmarks: errors, files, digests, child processes, pictures,
text tables, prompt lists.
"""
