"""How COVID-19 infection progresses: T(W), its population law, and the fit of W."""
