"""From pictures to vectors: extractors, their networks, and features of folders of real
pictures.
"""
