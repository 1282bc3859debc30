"""What every trainer shares and knows no model: recipes, the training loop, shards, and the `shapes` data set."""
