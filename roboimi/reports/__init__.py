"""Reports: what a campaign showed, with honest statistics, as one HTML file, a small table, and plain sentences."""
