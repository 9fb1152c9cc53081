"""Trajectories, their rewards, and the rows (samples of denoising steps) that training reads."""
