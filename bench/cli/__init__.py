"""The command line, one module a group of commands; nothing here imports torch before a command
needs it.
"""
