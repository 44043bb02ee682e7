"""Typicality maps and where their labels are known to be in; how well the ones tell the others out.

`truth` makes boxes and masks into pixels of the model-size image, `scores` measures one map against
them, `findings` takes the images of one label together.
"""
