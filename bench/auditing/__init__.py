"""`bench audit`: does a fine-tuned model give back the pictures that it was trained on? Which, how
easily, is that the training or the base, and what helps?
"""
