"""`bench analyze locality`: is what a model memorized in one place? (After "Finding Dori":
Kowalczuk et al., arXiv 2507.16880.)
"""
