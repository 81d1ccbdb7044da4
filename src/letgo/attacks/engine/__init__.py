"""What drives the attacks: their specs, the target, the judge, the search."""
