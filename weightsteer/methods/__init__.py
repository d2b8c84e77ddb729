"""One file per row of a comparison.

A method file has `Settings` and `fit(recipe, pairs, lm, out) -> vector`; `out` is the run's folder, and the vector has
`digest` and `applied(lm, k)`. It may have `check(recipe, pairs)`, which raises before anything runs what `fit` would
find wrong only after earlier stages.
"""
