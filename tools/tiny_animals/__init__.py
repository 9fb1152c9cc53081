"""Build the shipped model: pictures from a font, autoencoder, scorer, judge, denoiser."""
