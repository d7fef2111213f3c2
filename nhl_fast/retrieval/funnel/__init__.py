"""Search coarse to fine: candidates by a short prefix, ranked again by what costs more."""
