"""Metrics, protocols and the report: what masks and chosen words are worth, from plain numpy arrays.

metrics.py       masks -> intersection, union, IoU           results.py     the numbers kept per object
res.py, png.py   one protocol each                           keywords.py    which words should be grounded
bootstrap.py     intervals over images                       baselines.py   keyword choice without a selector
qa/              does the LMM answer the same with attention capture on and off?
pictures.py      the picture sheet                           report.py      HTML page, metrics.json, Markdown
"""
