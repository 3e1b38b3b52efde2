"""Pure numpy: intervals, paired differences and the Frechet distance."""
