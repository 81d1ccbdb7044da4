"""What every other folder stands on: errors, the registry, progress, files, processes. Knows nothing of models."""
