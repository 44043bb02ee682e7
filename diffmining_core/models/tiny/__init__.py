"""The tiny pipeline's weights, and the script that trained them."""
