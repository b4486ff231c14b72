"""Metrics, protocols and the report: what masks and chosen words are worth, from plain numpy arrays.

metrics.py       masks -> intersection, union, IoU           results.py     the numbers kept per object
res.py, png.py   one protocol each                           keywords.py    which words should be grounded
gcg.py           captions with grounded phrases              captions.py    METEOR and CIDEr
bootstrap.py     intervals over images                       baselines.py, noun_chunks.py   choice without a selector
assignment.py    one-to-one pairs                            similarity.py  how alike two phrases are
pictures.py      the picture sheet                           report.py      HTML page, metrics.json, Markdown
"""
