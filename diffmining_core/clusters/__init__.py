"""Selected patches and their features in, clusters of one label's patches out.

`kmeans` groups the highest patches of each label by their features and ranks the groups by the
median typicality of their members.
"""
