"""Metrics, protocols and the report: what masks and chosen words are worth, from plain numpy arrays.

metrics.py       masks -> intersection, union, IoU           results.py     the numbers kept per object
res.py, png.py   one protocol each                           keywords.py    which words should be grounded
bootstrap.py     intervals over images                       baselines.py   keyword choice without a selector
measures.py      a number, of every protocol alike           evaluation.py  all of them: metrics.json, and back
tables.py        pivots of them, Markdown                    titles.py      how protocols and metrics are called
pictures.py      the picture sheet                           conversations.py  captions with their masks
page.py          the HTML page (*.html.j2)                   report.py      all files of an evaluation
compare.py       several evaluations beside each other       published.py   what others published (published.toml)
"""
