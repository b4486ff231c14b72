"""Metrics, protocols and the report: what masks and chosen words are worth.

scoring.py    a head on cached priors -> numbers per object, text and conversation     worker.py  some samples at a time
results.py    the numbers kept per object, as a table          metrics.py     masks -> intersection, union, IoU
res.py, png.py, reasonseg.py, gcg.py, keywords.py              one protocol each -> measures (measures.py)
bootstrap.py  intervals over images                            baselines.py, noun_chunks.py  keywords without a selector
captions.py   METEOR and CIDEr                                 similarity.py  of phrases
assignment.py, average_precision.py                            the mathematics of GCG
stage.py      all of them together -> Evaluation               evaluation.py  Evaluation and metrics.json
tables.py     measures -> tables, Markdown                     titles.py      how protocols and metrics are called
page.py       the HTML page                                    report.py      all files of an evaluation
compare.py    several evaluations side by side                 published.py   numbers of papers
cases.py, pictures.py, conversations.py                        single cases as pictures
qa/           does the LMM answer the same with attention capture on and off?
"""
