"""Does the frozen LMM keep its conversation? The same questions with attention capture switched on and off.

speakers.py    who answers: the LMM of extraction with its capture at work, or the same checkpoint plainly loaded
questions.py   a small set of questions about rendered scenes, so that the check runs anywhere
exchanges.py   questions with both answers, what of them differs, the file of all of them
harness.py     MME, POPE, MMBench, …: lmms-eval's own tasks, run in a Python environment that has lmms-eval
"""
