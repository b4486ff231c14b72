"""Which layers and heads of the LMM localise? From a cache alone."""
