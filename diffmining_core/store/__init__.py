"""Where results live: roots, unit keys, the ledger of manifests, and ragged Zarr maps.

In: what a stage made for one unit. Out: the same, found again by the unit's key, verified.
"""
