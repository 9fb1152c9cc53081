"""Trajectories, their scores, and the rows that training reads."""
