"""A trained model as one file: recorded, written, read, run.

graph.py    a forward as a list of kernel calls, for any batch size
rules.py    what each kernel takes, and the shapes and dtypes it gives
export.py   from a model to a graph and its file
runtime.py  from a file to answers
"""
