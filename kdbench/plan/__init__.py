"""From words to runs: what there is, cards, options, and the configuration of a run. No torch."""
