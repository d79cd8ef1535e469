"""The joint search. Optuna lives in this folder only."""
