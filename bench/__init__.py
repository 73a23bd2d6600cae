"""The benchmark: what the worker costs, beside what the same work costs without it. See README.md here.

Needs nothing beyond the standard library; the worker runs under the interpreter named by `--python`.
"""
