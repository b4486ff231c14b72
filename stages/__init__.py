"""The stages of the pipeline, one folder each: extract, train_head, evaluate. A later one may import an earlier one."""
