"""Scripts that maintain this repository. Nothing here is shipped."""
