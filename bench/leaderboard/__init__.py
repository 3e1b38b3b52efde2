"""From records to tables and pages: which numbers stand where, and how each format writes them."""
