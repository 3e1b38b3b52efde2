"""What a run leaves behind: the record, its older versions, the environment, and tolerances between
two.
"""
