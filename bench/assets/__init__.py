"""What suites need and this project does not ship: the catalogue, downloads, archives and the
cache.
"""
