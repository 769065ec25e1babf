"""The laboratory: problems small enough to be exact, on which the objectives of the table are compared.

A bandit is a completion of one token, so the very same objectives run here. Imports neither transformers nor
datasets.
"""
