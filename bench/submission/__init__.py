"""Strangers' records: checked, taken in, and made again in part."""
