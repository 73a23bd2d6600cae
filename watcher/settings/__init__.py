"""Define every setting: where it comes from, its type, its range, its meaning.

The only reader of the environment and `.env`.
"""
