"""The embedded default: how its pictures, model and judges are made, and the trained bundle."""
