"""From names to classes: built-ins, installed plug-ins, files, and what is known of each."""
