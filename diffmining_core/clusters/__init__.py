"""Selected patches and their features in, clusters of one label's patches out.

`kmeans` groups the highest patches of each label by their features and ranks the groups by the
median typicality of their members; `joint` groups sequences, a patch under every label at once, and
`trend` says how a group's look moves across labels.
"""
