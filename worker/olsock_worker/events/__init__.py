"""Asynchronous invocations: events that are kept on the disk until their function has taken them.

`interface.py` says what a queue has to offer and `sqlite.py` is the one of a single host; `writer.py` shares its commits among
who waits for them; `dispatcher.py` decides what is called when, and `delivery.py` is one call.
"""
