"""Mining what is typical of each label with a diffusion model; plain Python, no Prefect."""
