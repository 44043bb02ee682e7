"""Results in, a number against something known out.

`planted` compares typicality, patches and clusters with the elements planted in drawn scenes;
`correspondence` asks whether joint clusters hold one kind of them; `labels` asks how often
typicality summed over an image names the image's label.
"""
