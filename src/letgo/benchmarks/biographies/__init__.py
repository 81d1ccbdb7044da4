"""Facts about fictional people, with a model that knows them."""
