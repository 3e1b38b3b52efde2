"""Captioned pictures as people keep them for training: five layouts of a folder, and the views of a
picture that a training makes of it.
"""
