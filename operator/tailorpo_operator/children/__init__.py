"""What a job becomes on a cluster: the Indexed Job, its pods, and the document that they are given. Pure."""
