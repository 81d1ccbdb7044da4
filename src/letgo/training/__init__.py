"""The main job: a run's config, its trainer, one process or several, and `unlearn` itself."""
