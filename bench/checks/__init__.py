"""`bench check`: the contracts that every method, metric and attack must keep, tried on a tiny
model.
"""
