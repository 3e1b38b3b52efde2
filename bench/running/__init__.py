"""One run from names to a record: what is asked, what makes images, which images there are, and the
order of steps.
"""
