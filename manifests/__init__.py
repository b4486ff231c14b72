"""What to look at: one reader per dataset format, all producing the same table of samples (`manifests.schema`)."""
