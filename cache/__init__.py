"""The offline cache: what a head needs of a frozen LMM, on disk. Knows nothing of models.

store.py     a folder of sharded Zarr arrays in which only committed units exist (shared by both caches)
plan.py      which sample lies in which unit and slot: `pack`, rows.parquet
scaling.py   float16 without the loss: maps of mean 1, states of RMS 1
priors.py    `Priors`: the reader that training and evaluation use
"""
