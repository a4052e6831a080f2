"""The published method: a quadtree in space, links in time, thresholds that meet a budget."""
