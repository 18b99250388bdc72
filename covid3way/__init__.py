"""covid3way: COVID-19 infection on lung CT, after Zhou et al., IEEE TMI 2020."""
