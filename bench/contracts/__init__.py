"""What authors derive from: `Method`, `Metric`, `Attack`, and the data they exchange with the
harness.
"""
