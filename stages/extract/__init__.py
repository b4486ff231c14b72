"""Run the frozen LMM and the frozen SAM encoder once over the data and fill the cache."""
