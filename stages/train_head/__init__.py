"""Stage 2: train a grounding head from the cache, without the LMM."""
