"""Asynchronous invocations: events that are kept on the disk until their function has taken them.

`interface.py` says what a queue has to offer and `sqlite.py` is the one of a single host; `writer.py` shares its commits among
who waits for them; `dispatcher.py` and `turns.py` decide what is called when, `attempts.py` what follows from how that went.
"""
