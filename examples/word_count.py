"""A warm handler: `PROVIDER=handler HANDLER_COMMAND="python examples/word_count.py" python worker_watcher.py marie`."""

from collections import Counter

from watcher.handler import PermanentError, handler, serve


@handler
def default(event):
    """Count the words of the description."""
    return dict(Counter(event["description"].lower().split()))


@handler
def longest(event):
    """For tasks with `"metadata": {"handler": "longest"}`."""
    words = event["description"].split()
    if not words:
        raise PermanentError("there is no word in the description")
    return max(words, key=len)


if __name__ == "__main__":
    serve()
