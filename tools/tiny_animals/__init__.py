"""How the model that ships is made: pictures from a font, autoencoder, scorer, judge, denoiser."""
