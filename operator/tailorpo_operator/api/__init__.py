"""The resource: job and status, conditions, names and labels, and the CustomResourceDefinition with its CEL rules."""
