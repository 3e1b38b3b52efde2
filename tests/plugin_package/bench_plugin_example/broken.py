"""A method that cannot be imported here: what `bench list` must show as broken and nothing else may
notice.
"""

raise ImportError("libmilder.so is missing\nand so is its manual")
