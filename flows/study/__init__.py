"""Studies: what decides how well mining does, each a flow that leaves a page at the root."""
