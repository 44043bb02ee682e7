"""A root's published results -> tables, arrays and files for other tools."""
