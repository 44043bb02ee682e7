"""Typicality maps in, patches out: each image's best windows, then each label's.

`scoring` turns one shard of maps into a table of non-overlapping patches per image; `selection`
merges those tables, in any order, into the top patches of every label.
"""
