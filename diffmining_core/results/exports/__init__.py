"""A run's patches as data sets of other tools: COCO, Hugging Face, FiftyOne and CSV.

In: `MinedResults`. Out: a folder or address that holds nothing yet. Images are gone through one
after the other; memory holds the tables of chosen patches, which are as many for any number of
images, and a few images.
"""
