"""Three probability maps, their aggregation and quantification (Section III-D)."""
