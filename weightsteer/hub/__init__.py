"""A model card; push a checkpoint or an adapter to a hub."""
