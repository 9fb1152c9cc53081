"""The Kubernetes objects of a job: the Indexed Job, its pods, and the document that they read. Pure."""
