"""Tools that know nothing of diffusion or benchmarks: errors, files, digests, child processes,
parameters, pictures, prompt lists.
"""
